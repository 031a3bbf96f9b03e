"""The toy world's benchmark: every edit has an exact result, and the oracle judges against it. Named in `params.yaml`."""

from toyworld.edits.exact_edits import edits

__all__ = ["edits"]
