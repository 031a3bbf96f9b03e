"""The toy world's benchmark: every edit has an exact result, and the oracle judges against it. Named in `params.yaml`."""

from emuedit.toyworld.edits import edits

__all__ = ["edits"]
