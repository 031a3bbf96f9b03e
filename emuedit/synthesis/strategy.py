"""Choose the candidates of an instruction: all recipes of its task, or recipes selected by a bandit.

An arm is a recipe of a task for objects of a size; a trial succeeds if the pair passes the filters. Arms are chosen by Thompson
sampling with Beta posteriors: each arm's success rate is sampled from Beta(1 + successes, 1 + failures), and the best samples are
generated (Chapelle and Li, "An Empirical Evaluation of Thompson Sampling", NIPS 2011; several arms per turn: Komiyama, Honda and
Nakagawa, arXiv 1506.00779). Separate arms per object size, and updates only between rounds of shards, are ours: within a round, a
choice depends only on the instruction, so shards do not depend on worker or order.
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
    size: int  # number of size bounds that the object reaches
    candidate: int


TrialCounts = Counter[tuple[Arm, bool]]
"""(arm, success) -> count."""


def posterior(trial_counts: TrialCounts, arm: Arm) -> tuple[int, int]:
    """The a and b of the posterior Beta(a, b) from a uniform prior; its mean is a / (a + b)."""
    return 1 + trial_counts[arm, True], 1 + trial_counts[arm, False]


class AllCandidates(config.Params):
    """Every recipe for every instruction."""

    kind: Literal["all"] = "all"
    """Always `all`."""


class BanditStrategy(config.Params):
    """Use the recipes most likely to pass the filters. Useful with many recipes per task."""

    kind: Literal["bandit"]
    """Always `bandit`."""
    per_instruction: int = Field(ge=1)
    """Candidates per instruction; tasks with fewer recipes use all."""
    shards_per_round: int = Field(ge=1)
    """Shards per round, after which trial counts are updated; at least the number of workers."""
    sizes: tuple[float, ...]
    """Bounds between object sizes with separate arms: increasing fractions of the image."""
    filters: filters.Filters
    """Filters that define success: those of the stage dataset."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if list(sizes) != sorted(set(sizes)) or not all(0 < size < 1 for size in sizes):
            raise ValueError(f"want increasing shares of the image between 0 and 1, got {list(sizes)}")
        return sizes

    def arm(self, task: str, area: float, candidate: int) -> Arm:
        """The arm of a recipe for an object that covers this share of the image."""
        return Arm(task, bisect_right(self.sizes, area), candidate)


Strategy = Annotated[AllCandidates | BanditStrategy, Field(discriminator="kind")]


def shard_rounds(strategy: Strategy, n_shards: int) -> list[range]:
    """Shard numbers of each round; trial counts are updated between rounds."""
    if strategy.kind == "all":
        return [range(n_shards)]
    starts = range(0, n_shards, strategy.shards_per_round)
    return [range(start, min(start + strategy.shards_per_round, n_shards)) for start in starts]


def n_candidates(strategy: Strategy, n_recipes: int) -> int:
    """Number of candidates of an instruction whose task has this many recipes."""
    return n_recipes if strategy.kind == "all" else min(strategy.per_instruction, n_recipes)


def choose_candidates(
    strategy: Strategy, task: str, area: float, n_recipes: int, trial_counts: TrialCounts, key: str
) -> list[int]:
    """Numbers of the recipes to generate for an instruction, ascending; `area`: its object's share of the image."""
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
    """The trial counts as JSON: counts and posterior mean of every arm."""
    arms = []
    for arm in sorted({arm for arm, _ in trial_counts}, key=astuple):
        a, b = posterior(trial_counts, arm)
        counts = {"succeeded": trial_counts[arm, True], "failed": trial_counts[arm, False]}
        arms.append({**asdict(arm), **counts, "mean": round(a / (a + b), 4)})
    return json.dumps({"arms": arms}, indent=1) + "\n"
