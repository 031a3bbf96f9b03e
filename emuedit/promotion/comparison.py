"""Measure two editors on the same edits, with the same settings, judge and current code.

A measurement is cached in `scratch/promotion/` under a key of the package's bytes, the edits, the settings and the code. So a
champion is measured once for many challengers, and measurements under different conditions are never compared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE, content_key, stage_dependencies
from emuedit.data.image_io import MIN_CHANGE
from emuedit.data.png import decode_png, encode_png
from emuedit.data.publish import has_its_bytes, read_summary
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard, write_shard
from emuedit.data.user_cache import entry_ages
from emuedit.editor.package_layout import MODELS
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark, EditSource
from emuedit.metrics.edit_scores import evaluate_system, join_parts, split_edits
from emuedit.metrics.systems import System, Systems
from emuedit.progress import Progress
from emuedit.promotion.gate import GateError, Measurement
from emuedit.runtime import Runtime
from emuedit.tasks import HELD_OUT, changes_whole_image, get_task
from emuedit.tracking import service_errors

EVALUATION = Path("reports/evaluation")
"""Output folder of the stage `evaluation`."""
_SYSTEM = "emuedit"
"""The editor with its task predictor, as users run it."""
_CACHE = Path("scratch/promotion")
_KEPT_MEASUREMENTS = 6
_UNTOUCHED_SHARE = 0.05
"""Minimum share of pixels that the reference result leaves unchanged; otherwise untouched pixels are not measured."""
_WHOLE_IMAGE = "of a task that changes the whole image"
_NO_REFERENCE = "without a reference result"
_ANOTHER_TASK = "refused, or with another predicted task"
_ALL_CHANGED = f"with a reference result that leaves less than {_UNTOUCHED_SHARE:.0%} of the pixels unchanged"
_MEASURING = service_errors.local("measured editors")
_TIMED_EDITS = 5


@dataclass(frozen=True)
class ComparisonConditions:
    """The edits of a comparison, and their settings."""

    stage: str
    """The evaluating stage, whose code is part of the key."""
    benchmark: str
    tasks: tuple[str, ...]
    n_edits: int | None
    """Of each task; None: all that the benchmark's table has."""
    settings: EditSettings
    split: str = "held_out"
    device: str = "auto"
    dtype: str = "auto"

    def n_of(self, task: str, source: EditSource) -> int:
        """The number of edits of a task, and its errors, see `benchmark.n_to_measure`."""
        return benchmark.n_to_measure(source, task, self.split, self.n_edits)

    def parts(self, task: str, source: EditSource) -> Iterator[tuple[range, Benchmark]]:
        """The edits of a task, a few at a time (`edit_scores.split_edits`), and their positions."""
        for part in split_edits(self.n_of(task, source)):
            yield part, source(task, self.split, part.start, len(part))

    def key(self, root: Path) -> str:
        """16 hex digits over the edits, the settings, and the code that makes and judges them, without the models of `root`."""
        models = (root / MODELS).resolve()
        code = [path for path in stage_dependencies(self.stage, root) if models not in (path.resolve(), *path.resolve().parents)]
        runtime = Runtime.choose(self.device, self.dtype)
        named = [self.benchmark, self.n_edits, self.split, runtime.dtype, self.settings.model_dump()]
        return content_key({"items": named}, *sorted(set(code)))


@_MEASURING
def read_conditions(root: Path, section: str = "evaluation", extra_tasks: Sequence[str] = ()) -> ComparisonConditions:
    """The edits of the workspace's evaluation, and those of further tasks. Raises ParamsError for a wrong section."""
    values = config.read_yaml(root / config.PARAMS_FILE)
    part = values.get(section)
    if not isinstance(part, dict) or not {"tasks", "n_edits"} <= set(part):
        raise config.ParamsError(f"want the tasks and n_edits of an evaluation under {section} in {root / config.PARAMS_FILE}")
    optional = {key: part[key] for key in ("split", "device", "dtype") if key in part}
    tasks = tuple(dict.fromkeys([*part["tasks"], *extra_tasks]))
    settings = EditSettings().with_changes(part.get("settings", {}))
    n_edits = None if part["n_edits"] is None else int(part["n_edits"])
    return ComparisonConditions(section, values["world"]["benchmark"], tasks, n_edits, settings, **optional)


@_MEASURING
def check_tasks(conditions: ComparisonConditions, champion_uri: str) -> None:
    """Raise GateError if the benchmark lacks edits of a task with which the champion was promoted."""
    source = benchmark.load(conditions.benchmark, conditions.device)
    for task in conditions.tasks:
        try:
            conditions.n_of(task, source)
        except ValueError as error:
            raise GateError(
                f"want {conditions.n_edits or 'the'} edits of {task}, with which {champion_uri} was promoted: {error}; or "
                "promote a version with `emuedit promote N --force REASON`"
            ) from error


@_MEASURING
def with_tasks(conditions: ComparisonConditions, tasks: Sequence[str]) -> ComparisonConditions:
    """The conditions for the `tasks` with edits in the benchmark; unchanged ones if none of them is a trained task."""
    source = benchmark.load(conditions.benchmark, conditions.device)
    present = []
    for task in tasks:
        with contextlib.suppress(ValueError):
            conditions.n_of(task, source)
            present.append(task)
    return replace(conditions, tasks=tuple(present)) if any(get_task(task) not in HELD_OUT for task in present) else conditions


@_MEASURING
def measure(package: Path, name: str, conditions: ComparisonConditions, root: Path, afresh: bool = False) -> Measurement:
    """Measure the editor of a package on the edits. Tasks measured before with the same bytes and code are not run again.

    afresh: run all, and store nothing: libraries, drivers and the machine may have changed.
    """
    conditions_key = conditions.key(root)
    source = benchmark.load(conditions.benchmark, conditions.device)
    with contextlib.ExitStack() as stack:
        folder = root / _CACHE / content_key({"items": conditions_key}, *_package_files(package))
        if afresh:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)  # its last use, for `_prune`
            _adopt_evaluation(root, package, conditions, folder, source)
            stack.callback(_prune, root / _CACHE, folder)
        systems = Systems(package, conditions.settings, Runtime.choose(conditions.device, conditions.dtype))
        shards = _evaluate(name, systems, conditions, folder, source)
        records = [(task, read_shard(path, EvalRecord)) for task, path in shards.items()]
    note = benchmark.describe_judge(source, conditions.tasks, conditions.split)
    size = sum(file.stat().st_size for file in _package_files(package))
    return replace(_summarise(name, records, conditions_key), size_bytes=size, note=note)


@_MEASURING
def measure_nothing(conditions: ComparisonConditions, root: Path) -> Measurement:
    """Measure the identity baseline, which a first model must beat."""
    source = benchmark.load(conditions.benchmark, conditions.device)
    identity = Systems(root / MODELS, conditions.settings, Runtime.choose(conditions.device, conditions.dtype))["identity"]
    records = ((task, _evaluate_task("identity", identity, conditions, task, source)) for task in conditions.tasks)
    note = benchmark.describe_judge(source, conditions.tasks, conditions.split)
    return replace(_summarise("the identity baseline", records, conditions.key(root)), note=note)


@_MEASURING
def measure_speed(packages: Sequence[Path], conditions: ComparisonConditions) -> list[float]:
    """Seconds per edit of each package: the shortest of five, measured alternately, since other work only adds time."""
    runtime = Runtime.choose(conditions.device, conditions.dtype)
    edits = benchmark.load(conditions.benchmark, conditions.device)(conditions.tasks[0], conditions.split, 0, 1)
    runs = [Systems(package, conditions.settings, runtime)[_SYSTEM] for package in packages]
    seconds: list[list[float]] = [[] for _ in packages]
    for turn in range(_TIMED_EDITS + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(edits, [turn])
            times.append(time.perf_counter() - start)
    return [min(times[1:]) for times in seconds]  # the first one loads the models


def _evaluate(name: str, systems: Systems, conditions: ComparisonConditions, folder: Path, source: EditSource) -> dict[str, Path]:
    """The shard of each task; the edits of tasks without one are made."""
    paths = {task: folder / f"{task}.parquet" for task in conditions.tasks}
    missing = [task for task, path in paths.items() if not path.exists()]
    if missing:
        with Progress(f"measuring {name}", sum(conditions.n_of(task, source) for task in missing), "edit") as progress:
            for task in missing:
                records = _evaluate_task(_SYSTEM, systems[_SYSTEM], conditions, task, source, progress)
                write_shard(paths[task], records, EvalRecord)
    return paths


def _evaluate_task(
    name: str,
    system: System,
    conditions: ComparisonConditions,
    task: str,
    source: EditSource,
    progress: Progress | None = None,
) -> list[EvalRecord]:
    """The records of a system's edits of a task, made a few at a time."""
    parts, references = [], list[bytes | None]()
    for part, edits in conditions.parts(task, source):
        parts.append(evaluate_system(name, system, edits, None, conditions.settings.seed, start=part.start))
        references += _references(edits)
        if progress:
            progress.advance(len(part))
    return _with_references(join_parts(parts), references)


def _adopt_evaluation(root: Path, package: Path, conditions: ComparisonConditions, folder: Path, source: EditSource) -> None:
    """Reuse the results of the stage `evaluation` for the workspace's models, if benchmark, settings and number format are equal.

    Its code and inputs are not compared here: whoever compares the workspace's models must know that the stage is up to date for
    DVC (see `promote.promote`). The bytes of the models are compared with the hashes in their summaries.
    """
    out = root / EVALUATION
    if package.resolve() != (root / MODELS).resolve() or not (out / SUMMARY_FILE).is_file():
        return
    params = read_summary(out).params
    expected = {
        "benchmark": conditions.benchmark, "n_edits": conditions.n_edits, "split": conditions.split,
        "settings": conditions.settings.model_dump(mode="json"),
        "dtype": Runtime.choose(conditions.device, conditions.dtype).dtype,
    }  # fmt: skip
    if any(params.get(key) != value for key, value in expected.items()):
        return
    if not all(map(has_its_bytes, package.iterdir())):
        return
    for task in conditions.tasks:
        shard, path = out / f"shard-{_SYSTEM}-{task}.parquet", folder / f"{task}.parquet"
        if shard.exists() and not path.exists():
            references = [reference for _, edits in conditions.parts(task, source) for reference in _references(edits)]
            write_shard(path, _with_references(read_shard(shard, EvalRecord), references), EvalRecord)


def _references(edits: Benchmark) -> list[bytes | None]:
    """The reference result of each edit that has one, as PNG; none for a benchmark without `results`.

    A benchmark's `exact` is None unless all edits have one; the optional `results` of `photo_benchmark` has those that exist.
    """
    results = getattr(edits, "results", None) or [None] * len(edits.instructions)
    return [None if result is None else encode_png(result) for result in results]


def _with_references(records: Sequence[EvalRecord], references: Sequence[bytes | None]) -> list[EvalRecord]:
    """The records, with the reference result of each edit that has one."""
    return [replace(record, exact=record.exact or png) for record, png in zip(records, references, strict=True)]


def _summarise(name: str, records: Iterable[tuple[str, Sequence[EvalRecord]]], conditions_key: str) -> Measurement:
    """Pass over the records of one task after the other: all of them, with their images, may not fit in memory."""
    success: dict[str, list[bool]] = {}
    untouched: dict[str, list[float | None]] = {}
    gaps = Counter[str]()
    for task, of_task in records:
        success[task] = [record.success for record in of_task]
        changes = [_measure_untouched(record) for record in of_task]
        untouched[task] = [None if isinstance(change, str) else change for change in changes]
        gaps.update(change for change in changes if isinstance(change, str))
    return Measurement(name, success, untouched, dict(gaps), conditions_key=conditions_key)


def _measure_untouched(record: EvalRecord) -> float | str:
    """How much an edit changes pixels that the reference result leaves unchanged, in [0, 1], or why that is unknown.

    The mean distance of the output from the range between input and reference; where both are equal, this is |output - input|.
    So the noise of a compressed reference, and a faint change that it makes, are not counted against an output.
    A task that changes the whole image has no pixel that must stay, even where its reference result equals the input by chance.
    An edit that was not made, or another edit in its place, says nothing about the pixels outside this one.
    """
    if changes_whole_image(record.task):
        return _WHOLE_IMAGE
    if record.given_task != record.task:
        return _ANOTHER_TASK
    if record.exact is None:
        return _NO_REFERENCE
    source, output, exact = (decode_png(png).astype(np.int16) for png in (record.source, record.output, record.exact))
    same = np.abs(exact - source).max(axis=-1) <= 255 * MIN_CHANGE  # [H, W]
    if same.mean() < _UNTOUCHED_SHARE:
        return _ALL_CHANGED
    beyond = np.maximum(output - np.maximum(source, exact), np.minimum(source, exact) - output).clip(min=0)  # [H, W, 3]
    return float(beyond[same].mean() / 255)


def _package_files(package: Path) -> list[Path]:
    """The files on which an edit depends: weights and files of all parts."""
    files = (file for file in package.rglob("*") if file.is_file() and file.name != "out_of_fold.parquet")
    return sorted(file for file in files if "replay" not in file.relative_to(package).parts)


def _prune(cache: Path, newest: Path) -> None:
    """Delete the measurements that were not used for the longest time."""
    others = [folder for _, folder in entry_ages(cache) if folder != newest]
    for folder in others[_KEPT_MEASUREMENTS - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)  # another process may delete at the same time
