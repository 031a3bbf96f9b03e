"""The result of a synthesis step that rejects an instruction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejected:
    """Why an instruction gives no pair. `reason` is one of the drop reasons written to disk."""

    reason: str
