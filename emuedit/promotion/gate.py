"""Decide whether a challenger becomes the champion, from two measurements of the same edits, without side effects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from emuedit.promotion.gate_settings import GateSettings
from emuedit.promotion.paired_bootstrap import Difference, compare_paired
from emuedit.tasks import HELD_OUT, get_task

OVERALL = "overall"


class GateError(ValueError):
    """Raised for measurements that cannot be compared or are too small."""


@dataclass(frozen=True)
class Measurement:
    """Results of one editor on the edits of the comparison."""

    name: str
    """Name of the editor in the table, such as `models:/emuedit-editor/3` or `the identity baseline`."""
    success: Mapping[str, Sequence[bool]]
    """Task -> whether each edit succeeded, in the order of the benchmark."""
    untouched: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Task -> change, in [0, 1], of the pixels that the reference result leaves unchanged, for each edit; None: not measured."""
    untouched_gaps: Mapping[str, int] = field(default_factory=dict)
    """Why `untouched` is None -> number of such edits."""
    seconds_per_edit: float | None = None
    size_bytes: int | None = None
    conditions_key: str = ""
    """Hash of the edits, the settings and the judge: only measurements with equal hashes are compared."""
    note: str = ""
    """A note about the judge, see `benchmark.describe_judge`; the reason of the decision repeats it."""

    @property
    def overall(self) -> float:
        """Edit success in [0, 1]: the mean over the trained tasks with equal weights."""
        return self.share(self.trained)

    @property
    def trained(self) -> list[str]:
        """The measured tasks on which editors are trained."""
        return [task for task in self.success if get_task(task) not in HELD_OUT]

    def share(self, tasks: Sequence[str]) -> float:
        """Edit success in [0, 1]: the mean over these tasks with equal weights."""
        return float(np.mean([np.mean(self.success[task]) for task in tasks]))


@dataclass(frozen=True)
class Row:
    """One line of the table: a task, or `overall`."""

    name: str
    n: int
    champion: float
    challenger: float
    """Shares of edits that succeed, in [0, 1]."""
    difference: Difference
    objection: str = ""
    """Why this row prevents a promotion; empty if it does not."""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger is promoted, and why."""

    promote: bool
    reason: str
    rows: tuple[Row, ...] = ()
    conditions_key: str = ""
    """`Measurement.conditions_key` of the measurements."""
    outside: str = ""
    """The change of pixels outside the edit, as text: both values, or why they were not measured."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def table(self) -> str:
        """As text: shares of success, their difference and its interval, then the change of pixels outside the edit."""
        lines = [f"{'edit success':14}{'edits':>6}{'champion':>10}{'challenger':>12}{'difference':>12}  interval"]
        for row in self.rows:
            interval = f"{row.difference.low:+.3f} to {row.difference.high:+.3f}"
            line = f"{row.name:14}{row.n:6d}{row.champion:10.3f}{row.challenger:12.3f}{row.difference.mean:+12.3f}  {interval}"
            lines.append(line + (f"  {row.objection}" if row.objection else ""))
        lines += [f"pixels outside the edit: {self.outside}"] if self.outside else []
        return "\n".join(lines)


def decide(challenger: Measurement, champion: Measurement, settings: GateSettings, is_first: bool = False) -> Decision:
    """Compare two editors, and decide whether the first replaces the second.

    is_first: `champion` is the identity baseline, because there is no champion; then only overall success counts.
    Raises GateError for measurements of different edits or of too few.
    """
    _check(challenger, champion, settings)
    rows = tuple(_rows(challenger, champion, settings, is_first))
    overall = rows[0]
    objections = [row.objection for row in rows if row.objection]
    if not is_first:
        objections += list(_other_objections(challenger, champion, settings))
    scores = f"edit success {overall.challenger:.3f} against {overall.champion:.3f} of {champion.name}"
    scores += f" ({overall.difference.mean:+.3f}, {overall.difference.low:+.3f} to {overall.difference.high:+.3f})"
    outside, is_measured = ("", True) if is_first else _describe_outside(challenger, champion)
    gap = "" if is_measured else f"; pixels outside the edit: {outside}"
    verdict = f": {'; '.join(objections)}" if objections else ", all criteria met" if is_measured else ", all other criteria met"
    note = f"; {challenger.note}" if challenger.note else ""
    return Decision(not objections, f"{scores}{verdict}{gap}{note}", rows, challenger.conditions_key, outside)


def _check(challenger: Measurement, champion: Measurement, settings: GateSettings) -> None:
    if challenger.conditions_key != champion.conditions_key:
        raise GateError("want both editors measured on the same edits with the same settings and judge; measure both again")
    sizes = {task: len(values) for task, values in challenger.success.items()}
    if sizes != {task: len(values) for task, values in champion.success.items()}:
        raise GateError(f"want the same edits of both editors, got {sizes} of {challenger.name} and others of {champion.name}")
    if not challenger.trained:
        raise GateError(f"want at least one measured task on which editors are trained, got {', '.join(sizes) or 'none'}")
    if too_small := {task: size for task, size in sizes.items() if size < settings.min_edits}:
        raise GateError(
            f"want at least promotion.min_edits = {settings.min_edits} edits of each task, got {too_small}; "
            "raise evaluation.n_edits (if it is a number), add rows to edits.csv, or leave the task out of evaluation.tasks"
        )


def _rows(challenger: Measurement, champion: Measurement, settings: GateSettings, is_first: bool) -> Iterator[Row]:
    tasks = list(challenger.success)
    trained = challenger.trained
    differences = {task: np.subtract(challenger.success[task], champion.success[task], dtype=float).tolist() for task in tasks}
    bootstrap = settings.confidence, settings.resamples
    confidence_of_drop = 1 - (1 - settings.confidence) / len(tasks)  # Bonferroni: any of the tasks can prevent the promotion

    overall = compare_paired(differences, trained, *bootstrap, threshold=-settings.epsilon)
    n = sum(len(differences[task]) for task in trained)
    yield Row(OVERALL, n, champion.overall, challenger.overall, overall, _objection(overall, settings))
    for task in tasks:
        difference = compare_paired(differences, [task], *bootstrap)
        allowance = settings.allowance(task)
        has_dropped = not is_first and -difference.mean > allowance
        has_dropped = has_dropped and compare_paired(differences, [task], confidence_of_drop, settings.resamples).high < 0
        text = f"edit success of {task} dropped by {-difference.mean:.3f}, more than the allowed {allowance:g}"
        objection = text if has_dropped else ""
        yield Row(task, len(differences[task]), champion.share([task]), challenger.share([task]), difference, objection)


def _objection(difference: Difference, settings: GateSettings) -> str:
    if difference.mean > -settings.epsilon and difference.share_above >= settings.confidence:
        return ""
    demand = "better" if settings.epsilon == 0 else f"not worse by more than {settings.epsilon:g}"
    return f"{demand} in only {difference.share_above:.0%} of the resamples; {settings.confidence:.0%} required"


def _other_objections(challenger: Measurement, champion: Measurement, settings: GateSettings) -> Iterator[str]:
    if changes := _compare_untouched(challenger, champion):
        new, old, n_edits = changes
        if new - old > settings.untouched_allowance:
            yield (
                f"pixels outside the edit {_describe_changes(new, old, n_edits)}; "
                f"allowed increase {settings.untouched_allowance:g}"
            )
    if challenger.seconds_per_edit and champion.seconds_per_edit:
        ratio = challenger.seconds_per_edit / champion.seconds_per_edit
        if ratio > settings.max_slowdown:
            yield f"an edit takes {ratio:.2f} times as long (allowed: {settings.max_slowdown:g})"
    if challenger.size_bytes and champion.size_bytes:
        ratio = challenger.size_bytes / champion.size_bytes
        if ratio > settings.max_growth:
            yield f"the package is {ratio:.2f} times as large (allowed: {settings.max_growth:g})"


def _describe_outside(challenger: Measurement, champion: Measurement) -> tuple[str, bool]:
    """The change of pixels outside the edit as text, and whether it was measured."""
    changes = _compare_untouched(challenger, champion)
    n_edits = sum(map(len, challenger.success.values()))
    reasons = ", ".join(f"{reason} ({n} of {n_edits} edits)" for reason, n in challenger.untouched_gaps.items())
    gaps = [f"not measured: {reasons}"] if reasons else []
    n_of_challenger = sum(value is not None for values in challenger.untouched.values() for value in values)
    n_of_both = changes[2] if changes else 0
    if n_of_challenger > n_of_both:
        gaps.append(f"not measured of the champion ({n_of_challenger - n_of_both} of {n_edits} edits)")
    if changes is None:
        return "; ".join(gaps) or "not measured: in no edit of both editors", False
    return "; ".join([_describe_changes(*changes), *gaps]), True


def _describe_changes(new: float, old: float, n_edits: int) -> str:
    edits = "edit" if n_edits == 1 else "edits"
    return f"change by {new:.4f}, the champion's by {old:.4f} in the {n_edits} {edits} measured of both"


def _compare_untouched(challenger: Measurement, champion: Measurement) -> tuple[float, float, int] | None:
    """Mean change of untouched pixels of both, over tasks, and the number of edits; only edits that were measured of both.

    Else an editor that does not edit, such as one that refuses an instruction, would have an advantage. None without such edits.
    """
    pairs = [
        [pair for pair in zip(values, champion.untouched.get(task, ()), strict=False) if None not in pair]
        for task, values in challenger.untouched.items()
    ]
    means = np.array([np.mean(np.array(of_task, dtype=float), axis=0) for of_task in pairs if of_task])
    if not len(means):
        return None
    new, old = means.mean(axis=0)
    return float(new), float(old), sum(map(len, pairs))
