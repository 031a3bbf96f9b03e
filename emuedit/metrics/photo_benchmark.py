"""A benchmark of real images: a folder with a table of edits, the images, and the judge's settings.

    edits.csv     image, task, instruction, input_caption, output_caption; optional: result (reference image), split
    judge.yaml    clip, dino, size, bounds          (written by `emuedit benchmark FOLDER --calibrate`)

The columns are those of Emu Edit's test set (facebook/emu_edit_test_set). `params.yaml` names the folder in `world.benchmark`.
Rows that cannot be judged, see `benchmark_rows.can_be_judged`, are left out; `emuedit benchmark FOLDER` lists them. A result
that is a copy of its image is no reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from emuedit import config
from emuedit.data import image_io
from emuedit.data.edit_table import find_image_problem, join_problems, read_edit_table
from emuedit.data.image_io import Pixels
from emuedit.data.text_tables import TableError
from emuedit.data.threads import map_in_threads
from emuedit.metrics.benchmark import EditCounts
from emuedit.metrics.benchmark_folder import HELD_OUT, JUDGE, REQUIRED, TABLE, missing_files
from emuedit.metrics.benchmark_rows import can_be_judged, check_aspect, equals_image, is_compared, unknown_tasks
from emuedit.metrics.judge_file import JudgeFile, calibrated_bounds
from emuedit.metrics.similarity_judge import Calibration, JudgeResults, ResultError, SimilarityJudge

_ADVICE = {
    "train": "lower train.preview.n_edits (inversion: n_examples and n_held_out), set train.preview to null",
    HELD_OUT: "lower evaluation.n_edits (if it is a number), leave the task out of evaluation.tasks",
}
"""Split -> what to change if a task has too few edits: previews and inversion use `train`, the evaluation `held_out`."""
_SPLITS = tuple(_ADVICE)

MAX_CACHED_BYTES = 2**29
"""Of scaled images in memory: 680 of 512 px."""


class BenchmarkError(ValueError):
    """Raised for a folder that is not a benchmark, and for missing edits."""


@dataclass(frozen=True)
class PhotoEdits:
    """N edits of one task."""

    task: str
    instructions: list[str]
    input_captions: list[str]
    output_captions: list[str]
    before: Pixels
    """The images to edit, uint8 [N, H, W, 3]."""
    results: list[Pixels | None]
    """Reference result of each edit, uint8 [H, W, 3], or None."""
    open_judge: Callable[[], SimilarityJudge]
    """Returns the folder's judge, and loads its models if they are not loaded."""

    @property
    def exact(self) -> Pixels | None:
        """The reference results uint8 [N, H, W, 3], or None unless all are known."""
        pictures = [result for result in self.results if result is not None]
        return np.stack(pictures) if len(pictures) == len(self.results) else None

    def judge(self, output: Pixels) -> JudgeResults:
        """Judge the N outputs of a system, uint8 [N, H, W, 3]."""
        captions = self.input_captions, self.output_captions
        return self.open_judge().judge(self.task, self.before, output, captions, self.results)


class _SquareCache:
    """The scaled squares of image files, in memory: an evaluation and a promotion use the same ones several times.

    When it is full, it stays as it is: images are used in the same order again, so replacing the oldest ones would leave none.
    """

    def __init__(self) -> None:
        self._squares: dict[tuple[str, int, int, int], Pixels] = {}
        self._n_bytes = 0

    def load(self, file: Path, side_px: int) -> Pixels:
        """The centre square of an image, see `image_io.fit_square`; read again if the file has another time or size."""
        key = (str(file.resolve()), *_version(file), side_px)
        if key not in self._squares:
            square = image_io.fit_square(image_io.read_image(file).pixels, side_px)
            if self._n_bytes + square.nbytes > MAX_CACHED_BYTES:
                return square
            self._squares[key] = square
            self._n_bytes += square.nbytes
        return self._squares[key]


_squares = _SquareCache()


def _version(file: Path) -> tuple[int, int]:
    """Time (ns) and size (bytes) of a file; zeros for a missing one, which `image_io.read_image` names."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


class PhotoBenchmark:
    """The edits of a folder; called as `edits(task, split, start, n)` (`emuedit.metrics.benchmark.EditSource`)."""

    def __init__(self, folder: str | Path, device: str = "auto", settings: JudgeFile | None = None) -> None:
        """`device`: device of the judge's networks. `settings`: of the judge; default: those of `judge.yaml`.

        Raises BenchmarkError, with file, row and column, for an invalid table."""
        self.folder, self.device = Path(folder), device
        self.settings = settings or read_judge(self.folder)
        rows = read_rows(self.folder)
        self._n_in_table = Counter((row["task"], row["split"]) for row in rows)
        self.rows = [row for row in rows if can_be_judged(row, self.settings.clip)]

    def __call__(self, task: str, split: str, start: int, n: int) -> PhotoEdits:
        """Edits start to start + n - 1 of a task. Raises BenchmarkError if there are fewer."""
        return self._edits(task, self._rows(task, split, start + n)[start:])

    def check(self, task: str, split: str, n: int) -> None:
        """Raise BenchmarkError, as a call would, for fewer than n edits of a task; opens no image and no model."""
        self._rows(task, split, n)

    def count(self, task: str, split: str) -> EditCounts:
        """The edits of a task and split; those that cannot be judged have equal captions and no result."""
        return EditCounts(self._n_in_table[task, split], sum((row["task"], row["split"]) == (task, split) for row in self.rows))

    def unchanged_error(self, row: Mapping[str, str]) -> ResultError:
        """Error of the unedited image of a row with a result; opens no model."""
        before, result = self._load(row["image"]), self._load(row["result"])
        return ResultError.of(before, before, result)

    def _rows(self, task: str, split: str, n: int) -> list[dict[str, str]]:
        if split not in _SPLITS:
            raise BenchmarkError(f"want one of the splits {', '.join(_SPLITS)} of {self.folder}, got {split!r}")
        rows = [row for row in self.rows if row["task"] == task and row["split"] == split]
        if len(rows) < n:
            present = {name: sum(row["task"] == name for row in self.rows) for name in self.tasks}
            raise BenchmarkError(
                f"want {n} edits of {task} that can be judged in the split {split} of {self.folder}, got {len(rows)}; "
                f"available: {present}: {_ADVICE[split]}, or add rows with that split to {TABLE}"
            )
        return rows[:n]

    def calibrate(self, task: str, rows: Sequence[dict[str, str]]) -> Calibration:
        """Bounds for one task from rows with results; see `SimilarityJudge.calibrate`."""
        edits = self._edits(task, rows)
        assert edits.exact is not None  # rows with results
        captions = edits.input_captions, edits.output_captions
        return self.similarity_judge.calibrate(task, edits.before, edits.exact, captions)

    def _edits(self, task: str, rows: Sequence[dict[str, str]]) -> PhotoEdits:
        return PhotoEdits(
            task,
            [row["instruction"] for row in rows],
            [row["input_caption"] for row in rows],
            [row["output_caption"] for row in rows],
            np.stack([self._load(row["image"]) for row in rows]),
            [self._load(row["result"]) if row.get("result") else None for row in rows],
            lambda: self.similarity_judge,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with edits, in the order of the table."""
        return tuple(dict.fromkeys(row["task"] for row in self.rows))

    @property
    def uncalibrated_tasks(self) -> tuple[str, ...]:
        """Tasks with edits that are judged by captions, with bounds that no calibration measured."""
        settings = self.settings
        by_captions = {row["task"] for row in self.rows if not is_compared(row, settings.clip)}
        return tuple(
            task
            for task in self.tasks
            if task in by_captions and settings.measured.get(task) != calibrated_bounds(settings.bounds_of(task))
        )

    @cached_property
    def similarity_judge(self) -> SimilarityJudge:
        """The judge; its models are loaded on first use."""
        from emuedit.models import clip, dino
        from emuedit.runtime import Runtime

        device = Runtime.choose(self.device).device
        models = clip.load(self.settings.clip, device), dino.load(self.settings.dino, device)
        return SimilarityJudge(*models, self.settings.bounds, self.settings.task_bounds)

    def free_judge(self) -> None:
        """Free the memory of the judge's models; they are loaded again on next use."""
        vars(self).pop("similarity_judge", None)

    def _load(self, name: str) -> Pixels:
        return _squares.load(self.folder / name, self.settings.size)


def write_judge(folder: Path, settings: JudgeFile) -> None:
    """Write `judge.yaml`."""
    (folder / JUDGE).write_text(yaml.safe_dump(settings.model_dump(), sort_keys=False), encoding="utf-8")


def read_judge(folder: Path) -> JudgeFile:
    """Read `judge.yaml`. Raises BenchmarkError if it is missing, is not valid YAML or has invalid values."""
    file = folder / JUDGE
    _check_file(file)
    advice = f"correct it, or delete it and run `emuedit benchmark {folder} --calibrate`"
    try:
        return JudgeFile.model_validate(dict(config.read_yaml(file)))
    except config.ParamsError as error:
        raise BenchmarkError(f"{error}; {advice}") from error
    except ValidationError as error:
        raise BenchmarkError(f"{file}: {join_problems(config.describe_values(error))}; {advice}") from error


def _check_file(file: Path) -> None:
    if line := missing_files(file.parent).get(file.name):
        raise BenchmarkError(line)


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a benchmark's table, with the default `split`.

    Raises BenchmarkError, with file, row and column, for an invalid table.
    """
    file = folder / TABLE
    _check_file(file)
    try:
        rows = read_edit_table(file, REQUIRED)
    except TableError as error:
        raise BenchmarkError(str(error)) from error
    rows = [row | {"split": row.get("split") or HELD_OUT} for row in rows]
    problems = [problem] if (problem := unknown_tasks(rows)) else []
    problems += [f"line {number}: {problem}" for number, row in enumerate(rows, start=2) if (problem := _check_row(row, folder))]
    if problems:
        raise BenchmarkError(f"{file}: {join_problems(problems)}")
    return [row | {"result": ""} if equals_image(row, folder) else row for row in rows]


def check_images(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Decode the images and results of all rows of the table, see `read_rows`, each file once.

    Raises BenchmarkError with the first line that names each file that is not an image, is damaged, too large or too small.
    """
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        for name in filter(None, (row["image"], row.get("result"))):
            lines.setdefault(name, number)
    problems = map_in_threads(lambda name: _image_problem(folder / name), lines)
    listed = [f"line {number}: {problem}" for number, problem in zip(lines.values(), problems, strict=True) if problem]
    if listed:
        raise BenchmarkError(f"{folder / TABLE}: {join_problems(listed)}; replace these images, or delete their lines")


def _image_problem(file: Path) -> str:
    try:
        image_io.check_image(file)
    except image_io.ImageError as error:
        return str(error)
    return ""


def _check_row(row: Mapping[str, str], folder: Path) -> str:
    """The problem of a row other than its task, or an empty string."""
    for column in ("image", "result"):
        if (column == "image" or row.get(column)) and (problem := find_image_problem(folder, column, row[column])):
            return problem
    if row.get("result") and (problem := check_aspect(folder / row["image"], folder / row["result"])):
        return problem
    if empty := [column for column in ("instruction", "input_caption", "output_caption") if not row[column]]:
        return f"want a text as {' and '.join(empty)}, got none"
    if row["split"] not in _SPLITS:
        return f"want one of the splits {', '.join(_SPLITS)}, got {row['split']!r}"
    return ""
