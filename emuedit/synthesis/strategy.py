"""Which candidates of a recipe an instruction is painted with: all of them, or those that a bandit finds promising.

An arm is a candidate of a task for objects of a size; it wins when a pair passes the gates. Arms are drawn by Thompson
sampling with Beta posteriors: one draw of each arm's win rate, Beta(1 + won, 1 + lost), and the best draws are painted
(Chapelle and Li, "An Empirical Evaluation of Thompson Sampling", NIPS 2011; several arms at once: Komiyama, Honda and
Nakagawa, arXiv 1506.00779). Sizes apart, and learning only between rounds of shards, are ours: within a round a choice depends
on nothing but the instruction, so whoever makes a shard, and whenever, makes the same one.
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
    """A candidate of a task, for objects of a size."""

    task: str
    size: int  # how many of the bounds between sizes the object reaches
    candidate: int


TrialCounts = Counter[tuple[Arm, bool]]
"""How often an arm was painted and won (True) or lost (False)."""


def posterior(trial_counts: TrialCounts, arm: Arm) -> tuple[int, int]:
    """The a and b of Beta(a, b) after what is known, from an even prior; its mean is a / (a + b)."""
    return 1 + trial_counts[arm, True], 1 + trial_counts[arm, False]


class AllCandidates(config.Params):
    """Every candidate for every instruction."""

    kind: Literal["all"]
    """The word `all`."""


class BanditStrategy(config.Params):
    """Some candidates for every instruction, those that promise to pass the gates."""

    kind: Literal["bandit"]
    """The word `bandit`."""
    per_instruction: int = Field(ge=1)
    """Candidates of an instruction; tasks with fewer have all of them."""
    shards_per_round: int = Field(ge=1)
    """Shards that are made before anything is learned from them; at least as many as there are workers."""
    sizes: tuple[float, ...]
    """Bounds between the sizes of objects, which are learned apart: shares of the picture, growing."""
    gates: filters.Filters
    """What a pair must pass: the gates of the station dataset."""

    @field_validator("sizes")
    @classmethod
    def _growing(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if list(sizes) != sorted(set(sizes)) or not all(0 < one < 1 for one in sizes):
            raise ValueError(f"want growing shares of the picture between 0 and 1, got {list(sizes)}")
        return sizes

    def arm(self, task: str, area: float, candidate: int) -> Arm:
        """The arm of a candidate where the object covers this share of the picture."""
        return Arm(task, bisect_right(self.sizes, area), candidate)


Strategy = Annotated[AllCandidates | BanditStrategy, Field(discriminator="kind")]


def rounds(strategy: Strategy, n_shards: int) -> list[range]:
    """Numbers of the shards of each round: nothing is learned within one."""
    if strategy.kind == "all":
        return [range(n_shards)]
    starts = range(0, n_shards, strategy.shards_per_round)
    return [range(start, min(start + strategy.shards_per_round, n_shards)) for start in starts]


def amount(strategy: Strategy, n: int) -> int:
    """How many of n candidates an instruction is painted with."""
    return n if strategy.kind == "all" else min(strategy.per_instruction, n)


def choose(strategy: Strategy, task: str, area: float, n: int, trial_counts: TrialCounts, key: str) -> list[int]:
    """Which of n candidates an instruction is painted with, in order; `area` is its object's share of the picture."""
    if strategy.kind == "all":
        return list(range(n))
    chance = rng("pairs", "bandit", key)
    drawn = [chance.beta(*posterior(trial_counts, strategy.arm(task, area, k))) for k in range(n)]
    return sorted(sorted(range(n), key=lambda k: -drawn[k])[: strategy.per_instruction])


def outcome(strategy: Strategy, shards: Sequence[Path]) -> TrialCounts:
    """How the arms did in finished shards of pairs; nothing where there is nothing to choose."""
    if strategy.kind == "all":
        return Counter()
    table = pa.concat_tables([filters.read_columns(path, "task", "recipe") for path in shards], promote_options="default")
    if not len(table):
        return Counter()
    kept = filters.apply_filters(table, strategy.gates).kept.tolist()
    recipes = [json.loads(text) for text in table["recipe"].to_pylist()]
    return Counter(
        (strategy.arm(task, recipe["object_area"], recipe["candidate"]), won)
        for task, recipe, won in zip(table["task"].to_pylist(), recipes, kept, strict=True)
        if "object_area" in recipe  # not drawn by an annotator
    )


def told(trial_counts: TrialCounts) -> str:
    """What was learned, as JSON for people: every arm with its trial_counts and the mean of its posterior."""
    arms = []
    for arm in sorted({arm for arm, _ in trial_counts}, key=astuple):
        a, b = posterior(trial_counts, arm)
        arms.append(
            {**asdict(arm), "won": trial_counts[arm, True], "lost": trial_counts[arm, False], "mean": round(a / (a + b), 4)}
        )
    return json.dumps({"arms": arms}, indent=1) + "\n"
