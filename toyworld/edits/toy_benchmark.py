"""The benchmark of the toy world. Every edit has an exact result, and the judge compares outputs with it.

`params.yaml` names this file in `world.benchmark`; the evaluation stage calls its function `edits`.
"""

from toyworld.edits.exact_edits import build_edits as edits

__all__ = ["edits"]
