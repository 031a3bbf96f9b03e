"""The checks of a dataset: measured value, default bounds, and advice for a breach.

The defaults fit the toy world and data of real images; all are ours, chosen from measurements in `docs/log.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from emuedit import config
from emuedit.data.filters import Edge

Level = Literal["pass", "warn", "fail"]


class CheckBound(config.Params):
    """Two inclusive bounds of a check: a value beyond `warn` is reported, a value beyond `fail` breaches the check."""

    warn: float | None = None
    """Bound beyond which the check warns; null: never."""
    fail: float | None = None
    """Bound beyond which the check fails; null: never."""


@dataclass(frozen=True)
class Check:
    """One check."""

    figure: str
    """The measured value, with its unit or range."""
    edge: Edge
    """Whether the bounds are lower or upper limits."""
    bound: CheckBound
    advice: str
    """What to do about a breach."""


def _check(figure: str, edge: Edge, warn: float | None, fail: float | None, advice: str) -> Check:
    return Check(figure, edge, CheckBound(warn=warn, fail=fail), advice)


_FILTERS = "loosen dataset.filters, or generate more instructions for it (instructions.tasks, instructions.max_per_task)"
_SAMPLE = "inspect the pairs listed in report.json and the contact sheets in data/dataset"
CHECKS: dict[str, Check] = {
    "damaged": _check(
        "damaged shards and sampled images, and kept pairs missing from all shards",
        "max", None, 0, "rerun the stage that writes them, or `dvc checkout`",
    ),
    "kept_pairs": _check("kept pairs", "min", 500, 100, "raise instructions.n_captions, or loosen dataset.filters"),
    "pairs_per_task": _check("kept pairs of the task with the fewest", "min", 50, 10, _FILTERS),
    "missing_tasks": _check(
        "tasks with instructions, or with pairs in the reference, but without kept pairs", "max", None, 0, _FILTERS
    ),
    "largest_task": _check(
        "share of the most frequent task in the kept pairs, in [0, 1]", "max", 0.5, 0.8,
        "lower instructions.max_per_task, or add pairs of the other tasks; import with --router, which predicts the task of each",
    ),
    "task_balance": _check(
        "evenness of the tasks, in [0, 1]; 1: equally many pairs each", "min", 0.7, 0.4,
        "lower instructions.max_per_task, or add pairs of rare tasks",
    ),
    "other_language": _check(
        "share of sampled pairs with texts in none of validation.languages, in [0, 1]", "max", 0.02, 0.1,
        "set captions.languages, or name the language in validation.languages",
    ),
    "instruction_words": _check(
        "share of instructions, or of the generated ones, shorter or longer than validation.instruction_words, in [0, 1]",
        "max", 0.02, 0.1, "set instructions.max_words, or widen validation.instruction_words",
    ),
    "caption_words": _check(
        "share of captions, or of the generated pairs' captions, shorter or longer than validation.caption_words, in [0, 1]",
        "max", 0.05, 0.2, "set captions.min_words and captions.max_words, or widen validation.caption_words",
    ),
    "duplicate_instructions": _check(
        "share of instructions, or of the generated ones, equal to an earlier one with the same task, captions and image, up to "
        "case, punctuation and articles",
        "max", 0.01, 0.05, "remove repeated captions from the source, or lower instructions.n_captions",
    ),
    "most_repeated_instruction": _check(
        "largest share of a task's generated instructions with identical text", "max", 0.3, 0.6,
        "lower instructions.max_repeat_share, or raise instructions.temperature",
    ),
    "equal_pictures": _check(
        "share of sampled pairs that look like an earlier one (equal perceptual hashes before and after), in [0, 1]",
        "max", 0.01, 0.05, _SAMPLE,
    ),
    "unchanged_pictures": _check(
        "share of sampled pairs with two identical images, in [0, 1]", "max", 0.0, 0.02,
        "raise clip_direction or another bound in dataset.filters: pairs without a change are useless for training",
    ),
    "picture_sizes": _check(
        "share of sampled pairs with a side below validation.min_side_px, or with images of different sizes, in [0, 1]",
        "max", 0.0, 0.02, "generate or import these pairs again in the base model's size (emuedit import --size)",
    ),
    "picture_modes": _check(
        "share of sampled pairs with an image that is not 8-bit RGB, or without colour before and after, in [0, 1]",
        "max", 0.05, 0.25, _SAMPLE,
    ),
    "picture_text": _check(
        "share of sampled images nearer to their own caption than to another pair's, by CLIP; 0.5: chance",
        "min", 0.75, 0.6, "captions and images do not match: " + _SAMPLE,
    ),
    "new_words": _check(
        "share of the words of instructions and captions that are not in the reference, in [0, 1]", "max", 0.05, 0.2,
        "check the new words in report.md; accept them if they are intended",
    ),
    "task_drift": _check(
        "Jensen-Shannon divergence between the task mixes, in [0, 1] bit", "max", 0.05, 0.2,
        "compare the table of tasks with the reference's; accept it if the change is intended",
    ),
    "picture_drift": _check(
        "CMMD between sampled images and the reference's; 0: no drift (arXiv 2401.09603)", "max", 0.25, 1.0,
        "inspect the contact sheets; accept it if the change is intended",
    ),
}  # fmt: skip
"""Name -> check, in the order of the report."""


def _refuse_unknown(names: Sequence[str] | Mapping[str, CheckBound]) -> None:
    if unknown := sorted(set(names) - set(CHECKS)):
        raise ValueError(f"want checks from {', '.join(CHECKS)}; got {', '.join(unknown)}")


def _check_bounds(bounds: dict[str, CheckBound]) -> dict[str, CheckBound]:
    _refuse_unknown(bounds)
    return bounds


def _check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    _refuse_unknown(names)
    return names


CheckBounds = Annotated[dict[str, CheckBound], AfterValidator(_check_bounds), Field(default={})]
"""Check -> bounds that replace its defaults."""
CheckNames = Annotated[tuple[str, ...], AfterValidator(_check_names), Field(default=())]
"""Names of checks."""


@dataclass(frozen=True)
class Measured:
    """Measured value of a check. None: it could not be measured; the check passes, and the note gives the reason."""

    value: float | None
    note: str = ""


@dataclass(frozen=True)
class CheckResult:
    """Measured value and verdict of a check."""

    name: str
    level: Level
    value: float | None
    bound: CheckBound
    note: str = ""
    is_accepted: bool = False
    """Whether the user accepted a breach; the level remains `fail`."""

    @property
    def is_breach(self) -> bool:
        """Whether it blocks training."""
        return self.level == "fail" and not self.is_accepted

    @property
    def verdict(self) -> str:
        """`pass`, `warn`, `fail` or `accepted`."""
        return "accepted" if self.is_accepted else self.level


def judge(measured: Mapping[str, Measured], bounds: Mapping[str, CheckBound], accepted: Sequence[str] = ()) -> list[CheckResult]:
    """The result of every check, in the order of `CHECKS`. `bounds`: check -> bounds that replace its defaults."""
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
