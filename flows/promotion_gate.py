"""Whether a new model becomes the champion: a decision over metrics, without side effects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IDENTITY = "identity"  # the editor that does nothing
METRIC = "edit_success"

Scores = Mapping[str, float | None]
"""`overall` and one entry per task, each in [0, 1]; None where nothing was measured."""


class GateError(ValueError):
    """Raised for metrics that say nothing about the candidate."""


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is promoted, and why."""

    promote: bool
    reason: str


def decide(candidate: Scores, identity: Scores, champion: Scores | None) -> Decision:
    """The candidate must score higher overall than doing nothing, and than the champion where there is one.

    A champion without a score of its own blocks no candidate. Raises GateError when candidate or identity have no overall score.
    """
    score, identity_score = _overall(candidate, "candidate"), _overall(identity, IDENTITY)
    if score <= identity_score:
        return Decision(False, f"edit success {score:.3f} is not above {identity_score:.3f}, that of doing nothing")
    champion_score = champion.get("overall") if champion else None
    if champion_score is None:
        champion_state = "there is no champion yet" if champion is None else "the champion was never measured"
        return Decision(True, f"edit success {score:.3f} is above {identity_score:.3f}, that of doing nothing; {champion_state}")
    if score <= champion_score:
        return Decision(False, f"edit success {score:.3f} is not above {champion_score:.3f}, that of the champion")
    return Decision(
        True,
        f"edit success {score:.3f} is above {champion_score:.3f}, that of the champion, "
        f"and {identity_score:.3f}, that of doing nothing",
    )


def read_scores(metrics: Mapping[str, Any], system: str) -> Scores:
    """The row of a system in the table `edit_success` of a metrics file. Raises GateError that names what is there instead."""
    table = metrics.get(METRIC)
    if not isinstance(table, Mapping) or not isinstance(table.get(system), Mapping):
        present = sorted(table) if isinstance(table, Mapping) else sorted(metrics)
        raise GateError(f"want {METRIC}.{system} in the metrics, got {present}")
    row: Scores = table[system]
    return row


def _overall(scores: Scores, system: str) -> float:
    value = scores.get("overall")
    if value is None or value != value:
        raise GateError(f"want a number for {METRIC} overall of the {system}, got {value}")
    return float(value)
