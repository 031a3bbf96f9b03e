"""The interface of a benchmark: edits with reference results, and a judge of a system's outputs.

Each world has a benchmark: a Python file or folder named in `params.yaml`. Shapes: N edits of one task.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from emuedit import config
from emuedit.data.image_io import Pixels


class Assessment(Protocol):
    """The judge's verdicts on N outputs."""

    @property
    def success(self) -> npt.NDArray[np.bool_]:
        """Whether each output is a correct edit, bool [N]."""
        ...

    @property
    def reason(self) -> tuple[str, ...]:
        """Why each output is not correct, N texts; empty for a correct one."""
        ...


class Benchmark(Protocol):
    """N edits of one task."""

    @property
    def task(self) -> str:
        """Name of the task, which may be untrained."""
        ...

    @property
    def instructions(self) -> list[str]:
        """The N instructions for the editor."""
        ...

    @property
    def input_captions(self) -> list[str]:
        """Captions of the N images to edit."""
        ...

    @property
    def output_captions(self) -> list[str]:
        """Captions of the N reference results."""
        ...

    @property
    def before(self) -> Pixels:
        """The images to edit, uint8 [N, H, W, 3]."""
        ...

    @property
    def exact(self) -> Pixels | None:
        """The reference results, of the same shape, or None if unknown. Task inversion trains on them."""
        ...

    def judge(self, output: Pixels) -> Assessment:
        """Judge the N outputs of a system."""
        ...


class EditSource(Protocol):
    """The function `edits` of a benchmark file.

    It may have a method `check(task, split, n)`, which raises the ValueError of a call for fewer than n edits without making any.
    """

    def __call__(self, task: str, split: str, start: int, n: int) -> Benchmark:
        """Edits start to start + n - 1 of a task. `split` is 'train' or 'held_out'; equal arguments give equal edits."""
        ...


class EditCounts(NamedTuple):
    """Numbers of edits of a task and split."""

    in_table: int
    usable: int
    """Those that can be judged; only these are measured."""


@runtime_checkable
class CountingSource(Protocol):
    """An EditSource that can count its edits without making them."""

    def count(self, task: str, split: str) -> EditCounts:
        """The edits of a task and split."""
        ...


def load(reference: str, device: str = "auto") -> EditSource:
    """The function `edits` of a file such as `toyworld/edits/toy_benchmark.py`, or a folder of real images (`photo_benchmark`).

    device: device name for the networks of the folder's judge, see `Runtime.choose`. Prints a line for an uncalibrated judge.
    Raises ParamsError for a missing file or function, BenchmarkError for a folder that is not a benchmark.
    """
    if Path(reference).is_dir() or not Path(reference).suffix:
        from emuedit.metrics.photo_benchmark import PhotoBenchmark

        benchmark = PhotoBenchmark(reference, device)
        if tasks := ", ".join(benchmark.uncalibrated_tasks):
            advice = f"`emuedit benchmark {reference} --calibrate` sets them"
            print(f"benchmark: uncalibrated judge, its bounds for {tasks} are not measured; {advice}", flush=True)
        return benchmark
    source: EditSource = config.import_function(reference, "edits")
    return source


def describe_judge(source: EditSource, tasks: Sequence[str], split: str) -> str:
    """A note about the judge of these tasks for reports and decisions; empty if there is nothing to say.

    Such as `uncalibrated judge: local, add; left out, with equal captions and no result: 41 of 430 edits of local`.
    """
    uncalibrated = [task for task in getattr(source, "uncalibrated_tasks", ()) if task in tasks]
    counts = {task: source.count(task, split) for task in tasks} if isinstance(source, CountingSource) else {}
    left_out = [f"{n - usable} of {n} edits of {task}" for task, (n, usable) in counts.items() if usable < n]
    notes = [f"uncalibrated judge: {', '.join(uncalibrated)}"] if uncalibrated else []
    notes += [f"left out, with equal captions and no result: {', '.join(left_out)}"] if left_out else []
    return "; ".join(notes)


def n_to_measure(source: EditSource, task: str, split: str, n_edits: int | None) -> int:
    """The number of edits to measure of a task: n_edits, or all that can be judged if it is None.

    Raises ParamsError as `count_usable`, and the ValueError of `check_edits` for fewer edits, or none to measure.
    """
    n = count_usable(source, task, split) if n_edits is None else n_edits
    check_edits(source, task, split, max(1, n))
    return n


def count_usable(source: EditSource, task: str, split: str) -> int:
    """The number of edits of a task that can be judged. Raises ParamsError for a benchmark that cannot count its edits."""
    if not isinstance(source, CountingSource):
        raise config.ParamsError(
            "evaluation.n_edits: want a number, got null, which needs a benchmark with a table of edits; set a number"
        )
    return source.count(task, split).usable


def check_edits(source: EditSource, task: str, split: str, n: int) -> None:
    """Raise the ValueError of a benchmark with fewer than n edits of a task; one without a `check` makes the last of them."""
    if hasattr(source, "check"):
        source.check(task, split, n)
    else:
        source(task, split, n - 1, 1)
