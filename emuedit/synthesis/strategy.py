"""Which candidates are generated for an instruction: all recipes of its task, or those that a bandit finds promising.

An arm is a recipe of a task for objects of a size; a trial succeeds when the pair passes the filters. Arms are chosen by Thompson
sampling with Beta posteriors: one draw of each arm's success rate from Beta(1 + successes, 1 + failures); the best draws are
generated (Chapelle and Li, "An Empirical Evaluation of Thompson Sampling", NIPS 2011; several arms at once: Komiyama, Honda and
Nakagawa, arXiv 1506.00779). Separate arms per object size, and learning only between rounds of shards, are ours: within a round
a choice depends on nothing but the instruction, so any worker makes the same shard at any time.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from emuedit import config
from emuedit.data import filters
from emuedit.runtime import rng


@dataclass(frozen=True)
class Arm:
    """A recipe of a task, for objects of a size."""

    task: str
    size: int  # how many of the bounds between sizes the object reaches
    candidate: int


TrialCounts = Counter[tuple[Arm, bool]]
"""How often an arm succeeded (True) or failed (False)."""


def posterior(trial_counts: TrialCounts, arm: Arm) -> tuple[int, int]:
    """The a and b of the posterior Beta(a, b) from a uniform prior; its mean is a / (a + b)."""
    return 1 + trial_counts[arm, True], 1 + trial_counts[arm, False]


class AllCandidates(config.Params):
    """Every recipe for every instruction."""

    kind: Literal["all"] = "all"
    """The word `all`."""


class BanditStrategy(config.Params):
    """Some recipes for every instruction: those that are likely to pass the filters. It pays with many recipes per task."""

    kind: Literal["bandit"]
    """The word `bandit`."""
    per_instruction: int = Field(ge=1)
    """Candidates of an instruction; tasks with fewer recipes have all of them."""
    shards_per_round: int = Field(ge=1)
    """Shards that are made before the trial counts are updated; at least as many as there are workers."""
    sizes: tuple[float, ...]
    """Bounds between object sizes that have separate arms: growing shares of the image."""
    filters: filters.Filters
    """What a pair must pass: the filters of the stage dataset."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if list(sizes) != sorted(set(sizes)) or not all(0 < size < 1 for size in sizes):
            raise ValueError(f"want growing shares of the image between 0 and 1, got {list(sizes)}")
        return sizes

    def arm(self, task: str, area: float, candidate: int) -> Arm:
        """The arm of a recipe where the object covers this share of the image."""
        return Arm(task, bisect_right(self.sizes, area), candidate)


Strategy = Annotated[AllCandidates | BanditStrategy, Field(discriminator="kind")]


def shard_rounds(strategy: Strategy, n_shards: int) -> list[range]:
    """Numbers of the shards of each round; trial counts are updated between rounds."""
    if strategy.kind == "all":
        return [range(n_shards)]
    starts = range(0, n_shards, strategy.shards_per_round)
    return [range(start, min(start + strategy.shards_per_round, n_shards)) for start in starts]


def n_candidates(strategy: Strategy, n_recipes: int) -> int:
    """How many candidates an instruction has whose task has this many recipes."""
    return n_recipes if strategy.kind == "all" else min(strategy.per_instruction, n_recipes)


def choose_candidates(
    strategy: Strategy, task: str, area: float, n_recipes: int, trial_counts: TrialCounts, key: str
) -> list[int]:
    """Numbers of the recipes to generate for an instruction, ascending; `area` is its object's share of the image."""
    if strategy.kind == "all":
        return list(range(n_recipes))
    random = rng("pairs", "bandit", key)
    draws = [random.beta(*posterior(trial_counts, strategy.arm(task, area, number))) for number in range(n_recipes)]
    return sorted(sorted(range(n_recipes), key=lambda number: -draws[number])[: strategy.per_instruction])


def count_trials(strategy: Strategy, shards: Sequence[Path]) -> TrialCounts:
    """Successes and failures of the arms in finished shards of pairs; empty for the strategy `all`."""
    if strategy.kind == "all":
        return Counter()
    table = pa.concat_tables([filters.read_columns(path, "task", "recipe") for path in shards], promote_options="default")
    if not len(table):
        return Counter()
    kept = filters.apply_filters(table, strategy.filters).kept.tolist()
    recipes = [json.loads(text) for text in table["recipe"].to_pylist()]
    return Counter(
        (strategy.arm(task, recipe["object_area"], recipe["candidate"]), success)
        for task, recipe, success in zip(table["task"].to_pylist(), recipes, kept, strict=True)
        if "object_area" in recipe  # generated, not annotated
    )


def describe_trials(trial_counts: TrialCounts) -> str:
    """The trial counts as JSON: every arm with its counts and the mean of its posterior."""
    arms = []
    for arm in sorted({arm for arm, _ in trial_counts}, key=astuple):
        a, b = posterior(trial_counts, arm)
        counts = {"succeeded": trial_counts[arm, True], "failed": trial_counts[arm, False]}
        arms.append({**asdict(arm), **counts, "mean": round(a / (a + b), 4)})
    return json.dumps({"arms": arms}, indent=1) + "\n"
