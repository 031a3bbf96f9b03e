"""The checks of a dataset: what each measures, the bounds it has by default, and what to do when one is breached.

The defaults fit the toy world and data of real pictures; all are ours, chosen from measurements in `docs/log.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from emuedit import config
from emuedit.data.filters import Edge

Level = Literal["pass", "warn", "fail"]


class CheckBound(config.Params):
    """Two bounds of a check, both inclusive: a figure beyond `warn` is mentioned, one beyond `fail` breaches the check."""

    warn: float | None = None
    """The figure from which the check warns; null: it never does."""
    fail: float | None = None
    """The figure from which the check fails; null: it never does."""


@dataclass(frozen=True)
class Check:
    """One check."""

    figure: str
    """What is measured, with its unit or range."""
    edge: Edge
    """Whether the bounds are the least or the most that the figure may be."""
    bound: CheckBound
    advice: str
    """What to do when it is breached."""


def _check(figure: str, edge: Edge, warn: float | None, fail: float | None, advice: str) -> Check:
    return Check(figure, edge, CheckBound(warn=warn, fail=fail), advice)


_FILTERS = "loosen dataset.filters, or generate more instructions of it (instructions.tasks, instructions.max_per_task)"
_SAMPLE = "look at the pairs that report.json lists, and at the contact sheets in data/dataset"
CHECKS: dict[str, Check] = {
    "damaged": _check(
        "shards and sampled pictures that cannot be read as they were published, and kept pairs that no shard holds",
        "max", None, 0, "run the stage that writes them again, or `dvc checkout`",
    ),
    "kept_pairs": _check("kept pairs", "min", 500, 100, "raise instructions.n_captions, or loosen dataset.filters"),
    "pairs_per_task": _check("kept pairs of the task that has the fewest", "min", 50, 10, _FILTERS),
    "missing_tasks": _check(
        "tasks with instructions, or with pairs in the reference, of which no pair was kept", "max", None, 0, _FILTERS
    ),
    "largest_task": _check(
        "share of the kept pairs that are of the most frequent task, in [0, 1]", "max", 0.5, 0.8,
        "lower instructions.max_per_task, or add pairs of the other tasks",
    ),
    "task_balance": _check(
        "evenness of the tasks, in [0, 1]; 1: all have as many pairs", "min", 0.7, 0.4,
        "lower instructions.max_per_task, or add pairs of the tasks that have few",
    ),
    "other_language": _check(
        "share of sampled pairs whose texts are in none of validation.languages, in [0, 1]", "max", 0.02, 0.1,
        "set captions.languages, or name the language in validation.languages",
    ),
    "instruction_words": _check(
        "share of instructions shorter or longer than validation.instruction_words, in [0, 1]", "max", 0.02, 0.1,
        "set instructions.max_words, or widen validation.instruction_words",
    ),
    "caption_words": _check(
        "share of captions shorter or longer than validation.caption_words, in [0, 1]", "max", 0.05, 0.2,
        "set captions.min_words and captions.max_words, or widen validation.caption_words",
    ),
    "duplicate_instructions": _check(
        "share of instructions that differ from an earlier one of task and captions by case, punctuation or articles at most",
        "max", 0.01, 0.05, "remove repeated captions from the source, or lower instructions.n_captions",
    ),
    "most_repeated_instruction": _check(
        "share of a task's instructions that are one and the same text; the task in which it is largest", "max", 0.3, 0.6,
        "lower instructions.max_repeat_share, or raise instructions.temperature",
    ),
    "equal_pictures": _check(
        "share of sampled pairs that look like an earlier one: before and after have equal perceptual hashes, in [0, 1]",
        "max", 0.01, 0.05, _SAMPLE,
    ),
    "unchanged_pictures": _check(
        "share of sampled pairs whose two pictures are equal in every pixel, in [0, 1]", "max", 0.0, 0.02,
        "raise clip_direction or another bound in dataset.filters: an edit that changes nothing teaches nothing",
    ),
    "picture_sizes": _check(
        "share of sampled pairs with a side below validation.min_side_px, or with two pictures of different size, in [0, 1]",
        "max", 0.0, 0.02, "generate or import these pairs again in the base model's size (emuedit import --size)",
    ),
    "picture_modes": _check(
        "share of sampled pairs with a picture that is not 8-bit RGB, or without colour before and after, in [0, 1]",
        "max", 0.05, 0.25, _SAMPLE,
    ),
    "picture_text": _check(
        "share of sampled pictures that are nearer to their own caption than to another pair's, by CLIP; 0.5: chance",
        "min", 0.75, 0.6, "captions and pictures do not belong together: " + _SAMPLE,
    ),
    "new_words": _check(
        "share of the words of instructions and captions that the reference never has, in [0, 1]", "max", 0.05, 0.2,
        "read the new words in report.md; accept them if the data shall have them",
    ),
    "task_drift": _check(
        "Jensen-Shannon divergence between the task mixes, in [0, 1] bit", "max", 0.05, 0.2,
        "compare the table of tasks with the reference's; accept it if the mix was changed on purpose",
    ),
    "picture_drift": _check(
        "CMMD between sampled pictures and the reference's; 0: no drift (arXiv 2401.09603)", "max", 0.25, 1.0,
        "look at the contact sheets; accept it if the pictures were changed on purpose",
    ),
}  # fmt: skip
"""Name -> check, in the order of the report."""


def _refuse_unknown(names: Sequence[str] | Mapping[str, CheckBound]) -> None:
    if unknown := sorted(set(names) - set(CHECKS)):
        raise ValueError(f"want checks out of {', '.join(CHECKS)}; got {', '.join(unknown)}")


def _check_bounds(bounds: dict[str, CheckBound]) -> dict[str, CheckBound]:
    _refuse_unknown(bounds)
    return bounds


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    _refuse_unknown(names)
    return names


CheckBounds = Annotated[dict[str, CheckBound], AfterValidator(_check_bounds), Field(default={})]
"""Check -> bounds that replace its own."""
CheckNames = Annotated[tuple[str, ...], AfterValidator(_check_names), Field(default=())]
"""Names of checks."""


@dataclass(frozen=True)
class Measured:
    """What a check found. A figure of None could not be measured: the check passes, and the note says why."""

    value: float | None
    note: str = ""


@dataclass(frozen=True)
class CheckResult:
    """A check's figure, judged."""

    name: str
    level: Level
    value: float | None
    bound: CheckBound
    note: str = ""
    is_accepted: bool = False
    """Whether a breach was accepted by a person; the level stays `fail`."""

    @property
    def is_breach(self) -> bool:
        """Whether it keeps the data from being trained on."""
        return self.level == "fail" and not self.is_accepted

    @property
    def verdict(self) -> str:
        """`pass`, `warn`, `fail` or `accepted`."""
        return "accepted" if self.is_accepted else self.level


def judge(measured: Mapping[str, Measured], bounds: Mapping[str, CheckBound], accepted: Sequence[str] = ()) -> list[CheckResult]:
    """The result of every check, in the order of `CHECKS`. `bounds` replace those of the checks that they name."""
    results = []
    for name, check in CHECKS.items():
        figure, bound = measured[name], bounds.get(name, check.bound)
        level: Level = "pass"
        if _is_beyond(figure.value, bound.fail, check.edge):
            level = "fail"
        elif _is_beyond(figure.value, bound.warn, check.edge):
            level = "warn"
        results.append(CheckResult(name, level, figure.value, bound, figure.note, level == "fail" and name in accepted))
    return results


def _is_beyond(value: float | None, bound: float | None, edge: Edge) -> bool:
    if value is None or bound is None:
        return False
    return value < bound if edge == "min" else value > bound
