"""The result of a step of pair synthesis that cannot go on with an instruction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejected:
    """Why an instruction gives no pair. `reason` is one of the drop reasons that are written to disk."""

    reason: str
