"""What the day of a team checks in the reason of the gate."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from emuedit.promotion.gate import Measurement, decide
from emuedit.promotion.gate_settings import GateSettings

ROOT = Path(__file__).resolve().parents[2]
CHAMPION = {"segment": 9, "background": 0, "remove": 0, "detect": 0}
"""Task -> edits that succeed, of 16."""


@pytest.fixture
def team_day(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("harness.team_day")


def gate_reason(challenger: Mapping[str, int]) -> str:
    """As `retrain` prints it."""

    def measure(name: str, counts: Mapping[str, int]) -> Measurement:
        return Measurement(name, {task: [number < count for number in range(16)] for task, count in counts.items()})

    decision = decide(measure("new", challenger), measure("models:/emuedit-editor/1", CHAMPION), GateSettings())
    return f"{'champion' if decision.promote else 'challenger only'}: {decision.reason}"


def test_the_day_wants_a_version_that_is_better_overall_and_refused_for_one_task(team_day: ModuleType) -> None:
    reason = gate_reason({"segment": 0, "background": 13, "remove": 4, "detect": 9})
    assert "edit success 0.406 against 0.141" in reason
    team_day.check_only_lost_task(reason, "segment")


@pytest.mark.parametrize(
    "challenger",
    [
        pytest.param({"segment": 0, "background": 2, "remove": 2, "detect": 2}, id="worse overall"),
        pytest.param({"segment": 9, "background": 13, "remove": 0, "detect": 0}, id="promoted"),
        pytest.param({"segment": 0, "background": 4, "remove": 4, "detect": 2}, id="hardly better overall"),
    ],
)
def test_the_day_refuses_other_decisions(challenger: Mapping[str, int], team_day: ModuleType) -> None:
    with pytest.raises(team_day.UnexpectedError, match="want a refusal for the task segment alone"):
        team_day.check_only_lost_task(gate_reason(challenger), "segment")


def test_the_tasks_of_that_version_are_the_other_measured_ones(team_day: ModuleType) -> None:
    measured = set(team_day.SMALL_JOB["evaluation"]["tasks"])
    assert measured & set(team_day.FIRST_TASKS) == {"segment"}
    assert measured - set(team_day.OTHER_TASKS) == {"segment"}
