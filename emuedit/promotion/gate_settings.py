"""Promotion criteria: the section `promotion` of `params.yaml`."""

from typing import Annotated

from pydantic import AfterValidator, Field

from emuedit import config
from emuedit.tasks import get_task

SECTION = "promotion"
Allowance = Annotated[float, Field(ge=0, le=1)]


def _check_tasks(allowances: dict[str, Allowance]) -> dict[str, Allowance]:
    for name in allowances:
        get_task(name)
    return allowances


class GateSettings(config.Params):
    """Criteria for a challenger to become champion."""

    min_edits: int = Field(16, ge=1)
    """Minimum number of edits of each task for a decision."""
    confidence: float = Field(0.9, gt=0.5, lt=1)
    """Share of the paired bootstrap's resamples in which the challenger must be better, and probability of the intervals in the
    table. A drop of a task counts with a probability of 1 - (1 - confidence) / number of tasks."""
    epsilon: float = Field(0.0, ge=0, lt=1)
    """By how much overall edit success may drop. 0: it must be better; 0.02: not worse by more than that, which accepts newer
    data at equal quality."""
    task_allowance: Allowance = 0.1
    """By how much the edit success of a single task may drop."""
    task_allowances: Annotated[dict[str, Allowance], AfterValidator(_check_tasks)] = Field(default={})
    """Task, trained or learned by inversion -> its allowance, instead of `task_allowance`."""
    untouched_allowance: float = Field(0.005, ge=0, le=1)
    """How much more the challenger may change pixels that the reference result leaves unchanged: mean |difference| in [0, 1]."""
    max_slowdown: float = Field(1.5, ge=1)
    """Largest ratio of the seconds per edit, challenger to champion: the shortest of five, measured alternately."""
    max_growth: float = Field(1.5, ge=1)
    """Largest ratio of the sizes of both packages in bytes."""
    resamples: int = Field(4000, ge=100)
    """Resamples of the bootstrap."""

    def allowance(self, task: str) -> float:
        """By how much the edit success of a task may drop, in [0, 1]."""
        return self.task_allowances.get(task, self.task_allowance)
