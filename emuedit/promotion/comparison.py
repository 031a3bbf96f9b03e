"""Measure two editors on the same edits, with the same settings, judge and current code.

A measurement is cached in `scratch/promotion/` under a key of the package's bytes, the edits, the settings and the code. So a
champion is measured once for many challengers, and measurements under different conditions are never compared.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE, content_key, stage_dependencies
from emuedit.data.png import decode_png
from emuedit.data.publish import read_summary
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard, write_shard
from emuedit.editor.package_layout import MODELS
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark
from emuedit.metrics.baselines import Systems
from emuedit.metrics.edit_scores import evaluate_system
from emuedit.progress import Progress
from emuedit.promotion.gate import GateError, Measurement
from emuedit.runtime import Runtime
from emuedit.tasks import HELD_OUT, get_task

EVALUATION = Path("reports/evaluation")
"""Output folder of the stage `evaluation`."""
_SYSTEM = "emuedit"
"""The editor with its task predictor, as users run it."""
_CACHE = Path("scratch/promotion")
_KEPT_MEASUREMENTS = 6
_UNTOUCHED_SHARE = 0.05
"""Minimum share of pixels that the reference result leaves unchanged; otherwise untouched pixels are not measured."""
_TIMED_EDITS = 5


@dataclass(frozen=True)
class ComparisonConditions:
    """The edits of a comparison, and their settings."""

    stage: str
    """The evaluating stage, whose code is part of the key."""
    benchmark: str
    tasks: tuple[str, ...]
    n_edits: int
    settings: EditSettings
    split: str = "held_out"
    device: str = "auto"
    dtype: str = "auto"

    def key(self, root: Path) -> str:
        """16 hex digits over the edits, the settings, and the code that makes and judges them, without the models of `root`."""
        models = (root / MODELS).resolve()
        code = [path for path in stage_dependencies(self.stage, root) if models not in (path.resolve(), *path.resolve().parents)]
        runtime = Runtime.choose(self.device, self.dtype)
        named = [self.benchmark, self.n_edits, self.split, runtime.dtype, self.settings.model_dump()]
        return content_key({"items": named}, *sorted(set(code)))


def read_items(root: Path, section: str = "evaluation", extra_tasks: Sequence[str] = ()) -> ComparisonConditions:
    """The edits of the workspace's evaluation, and those of further tasks. Raises ParamsError for a wrong section."""
    values = config.read_yaml(root / config.PARAMS_FILE)
    part = values.get(section)
    if not isinstance(part, dict) or not {"tasks", "n_edits"} <= set(part):
        raise config.ParamsError(f"want the tasks and n_edits of an evaluation under {section} in {root / config.PARAMS_FILE}")
    optional = {key: part[key] for key in ("split", "device", "dtype") if key in part}
    tasks = tuple(dict.fromkeys([*part["tasks"], *extra_tasks]))
    settings = EditSettings().with_changes(part.get("settings", {}))
    return ComparisonConditions(section, values["world"]["benchmark"], tasks, int(part["n_edits"]), settings, **optional)


def check_tasks(items: ComparisonConditions, champion: str) -> None:
    """Raise GateError if the benchmark lacks edits of a task with which the champion was promoted."""
    source = benchmark.load(items.benchmark, items.device)
    for task in items.tasks:
        try:
            source(task, items.split, 0, items.n_edits)
        except ValueError as error:
            raise GateError(
                f"want {items.n_edits} edits of {task}, with which {champion} was promoted: {error}; or promote a version with "
                "`emuedit promote N --force REASON`"
            ) from error


def with_tasks(items: ComparisonConditions, tasks: Sequence[str]) -> ComparisonConditions:
    """The same conditions for the `tasks` with edits in the benchmark; unchanged `items` if none of them is a trained task."""
    source = benchmark.load(items.benchmark, items.device)
    present = []
    for task in tasks:
        with contextlib.suppress(ValueError):
            source(task, items.split, 0, items.n_edits)
            present.append(task)
    return replace(items, tasks=tuple(present)) if any(get_task(task) not in HELD_OUT for task in present) else items


def measure(package: Path, name: str, items: ComparisonConditions, root: Path) -> Measurement:
    """Measure the editor of a package on the edits. Tasks measured before with the same bytes and code are not run again."""
    items_key = items.key(root)
    folder = root / _CACHE / content_key({"items": items_key}, *_package_files(package))
    folder.mkdir(parents=True, exist_ok=True)
    _adopt_evaluation(root, package, items, folder)
    systems = Systems(package, items.settings, Runtime.choose(items.device, items.dtype))
    records = _evaluate(name, systems, items, folder)
    _prune(root / _CACHE, folder)
    size = sum(file.stat().st_size for file in _package_files(package))
    return replace(_summarise(name, records, items_key), size_bytes=size)


def measure_nothing(items: ComparisonConditions, root: Path) -> Measurement:
    """Measure the identity baseline, which a first model must beat."""
    source, records = benchmark.load(items.benchmark, items.device), {}
    identity = Systems(root / MODELS, items.settings, Runtime.choose(items.device, items.dtype))["identity"]
    for task in items.tasks:
        edits = source(task, items.split, 0, items.n_edits)
        records[task] = evaluate_system("identity", identity, edits, None, 0)
    return _summarise("the identity baseline", records, items.key(root))


def measure_speed(packages: Sequence[Path], items: ComparisonConditions) -> list[float]:
    """Seconds per edit of each package: the shortest of five, measured alternately, since other work only adds time."""
    runtime = Runtime.choose(items.device, items.dtype)
    edits = benchmark.load(items.benchmark)(items.tasks[0], items.split, 0, 1)
    runs = [Systems(package, items.settings, runtime)[_SYSTEM] for package in packages]
    seconds: list[list[float]] = [[] for _ in packages]
    for turn in range(_TIMED_EDITS + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(edits, [turn])
            times.append(time.perf_counter() - start)
    return [min(times[1:]) for times in seconds]  # the first one loads the models


def _evaluate(name: str, systems: Systems, items: ComparisonConditions, folder: Path) -> dict[str, list[EvalRecord]]:
    source = benchmark.load(items.benchmark, items.device)
    paths = {task: folder / f"{task}.parquet" for task in items.tasks}
    missing = [task for task, path in paths.items() if not path.exists()]
    if missing:
        with Progress(f"measuring {name}", len(missing) * items.n_edits, "edit") as progress:
            for task in missing:
                edits = source(task, items.split, 0, items.n_edits)
                write_shard(paths[task], evaluate_system(_SYSTEM, systems[_SYSTEM], edits, None, items.settings.seed), EvalRecord)
                progress.advance(items.n_edits)
    return {task: list(read_shard(path, EvalRecord)) for task, path in paths.items()}


def _adopt_evaluation(root: Path, package: Path, items: ComparisonConditions, folder: Path) -> None:
    """Reuse the results of the stage `evaluation` with the same bytes, settings and code."""
    out = root / EVALUATION
    if package.resolve() != (root / MODELS).resolve() or not (out / SUMMARY_FILE).is_file():
        return
    params = read_summary(out).params
    conditions = {
        "benchmark": items.benchmark, "n_edits": items.n_edits, "split": items.split,
        "settings": items.settings.model_dump(mode="json"), "dtype": Runtime.choose(items.device, items.dtype).dtype,
    }  # fmt: skip
    if any(params.get(key) != value for key, value in conditions.items()):
        return
    for task in items.tasks:
        shard, path = out / f"shard-{_SYSTEM}-{task}.parquet", folder / f"{task}.parquet"
        if shard.exists() and not path.exists():
            write_shard(path, list(read_shard(shard, EvalRecord)), EvalRecord)


def _summarise(name: str, records: dict[str, list[EvalRecord]], items_key: str) -> Measurement:
    return Measurement(
        name,
        {task: [record.success for record in of_task] for task, of_task in records.items()},
        {task: [_untouched(record) for record in of_task] for task, of_task in records.items()},
        items=items_key,
    )


def _untouched(record: EvalRecord) -> float | None:
    """Mean |output - input| in [0, 1] over the pixels at which the reference result equals the input."""
    if record.exact is None:
        return None
    source, output, exact = (decode_png(png).astype(np.int16) for png in (record.source, record.output, record.exact))
    same = (source == exact).all(axis=-1)
    if same.mean() < _UNTOUCHED_SHARE:
        return None
    return float(np.abs(output - source)[same].mean() / 255)


def _package_files(package: Path) -> list[Path]:
    """The files on which an edit depends: weights and files of all parts."""
    files = (file for file in package.rglob("*") if file.is_file() and file.name != "out_of_fold.parquet")
    return sorted(file for file in files if "replay" not in file.relative_to(package).parts)


def _prune(cache: Path, newest: Path) -> None:
    others = (folder for folder in cache.iterdir() if folder != newest)
    folders = sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT_MEASUREMENTS - 1 :]:
        shutil.rmtree(folder)
