"""Who becomes champion: a decision over numbers, without side effects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IDENTITY = "identity"  # the editor that does nothing
METRIC = "edit_success"

Scores = Mapping[str, float | None]
"""`overall` and one entry a task, each in [0, 1]; None where nothing was measured."""


class GateError(ValueError):
    """Raised for metrics that say nothing about the candidate."""


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why."""

    promote: bool
    reason: str


def decide(candidate: Scores, identity: Scores, champion: Scores | None) -> Decision:
    """The candidate must edit better than doing nothing and better than the champion, overall. The first one has no champion.

    A champion without a score of its own blocks nobody. Raises GateError when candidate or identity have no overall score.
    """
    new, nothing = _overall(candidate, "candidate"), _overall(identity, IDENTITY)
    if new <= nothing:
        return Decision(False, f"edit success {new:.3f} is not above {nothing:.3f}, that of doing nothing")
    best = champion.get("overall") if champion else None
    if best is None:
        known = "there is no champion yet" if champion is None else "the champion was never measured"
        return Decision(True, f"edit success {new:.3f} is above {nothing:.3f}, that of doing nothing; {known}")
    if new <= best:
        return Decision(False, f"edit success {new:.3f} is not above {best:.3f}, that of the champion")
    return Decision(
        True, f"edit success {new:.3f} is above {best:.3f}, that of the champion, and {nothing:.3f}, that of doing nothing"
    )


def scores(metrics: Mapping[str, Any], system: str) -> Scores:
    """The row of a system in the table `edit_success` of a metrics file. Raises GateError, naming what is there instead."""
    table = metrics.get(METRIC)
    if not isinstance(table, Mapping) or not isinstance(table.get(system), Mapping):
        got = sorted(table) if isinstance(table, Mapping) else sorted(metrics)
        raise GateError(f"want {METRIC}.{system} in the metrics, got {got}")
    row: Scores = table[system]
    return row


def _overall(row: Scores, who: str) -> float:
    value = row.get("overall")
    if value is None or value != value:
        raise GateError(f"want a number for {METRIC} overall of the {who}, got {value}")
    return float(value)
