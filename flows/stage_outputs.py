"""What the stages produced: the parts of the model, metrics, files for people and the values of training runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emuedit.data.publish import STATS_FILE, logs_folder
from emuedit.metrics.success_table import success_with_slices
from emuedit.tracking import runs
from flows.dvc_graph import Graph

SuccessTable = Mapping[str, Mapping[str, float | None]]
"""System -> task or slice -> edit success; None: not measured."""


def model_parts(graph: Graph) -> dict[str, Path]:
    """Parts of the model -> their folders, as in `meta: {register: ...}` of the stages."""
    return {name: path for stage in graph.stages for name, path in stage.parts().items()}


def content_tag(graph: Graph) -> str:
    """16 hex digits, equal for models with equal weights and metrics."""
    return graph.content_of([*model_parts(graph).values(), *graph.metrics])


def merge_metrics(graph: Graph) -> dict[str, Any]:
    """All metrics files in one mapping. A key that exists already is stored as `<file>.<key>`."""
    metrics: dict[str, Any] = {}
    for path in graph.metrics:
        if (graph.root / path).exists():
            for key, value in runs.read_metrics_file(graph.root / path).items():
                metrics[key if key not in metrics else f"{path.as_posix()}.{key}"] = value
    return metrics


def success_table(graph: Graph) -> SuccessTable:
    """System -> task or slice -> edit success; empty if it was not measured."""
    return success_with_slices(merge_metrics(graph))


def measured_edits(graph: Graph) -> dict[str, int]:
    """Task -> number of measured edits; empty if the benchmark cannot count its edits."""
    numbers = merge_metrics(graph).get("edits")
    items = numbers.items() if isinstance(numbers, Mapping) else ()
    return {task: counts["measured"] for task, counts in items if isinstance(counts, Mapping) and "measured" in counts}


def report_files(graph: Graph) -> Iterator[Path]:
    """Plots, and the files of stages with `meta: {report: true}`, relative to the root.

    Without shards, which would fill MLflow with every evaluated image; DVC stores them.
    """
    for path in (path for stage in graph.stages for path in (stage.outs if stage.meta.get("report") else stage.plots)):
        if not (graph.root / path).is_dir():
            yield path
            continue
        files = sorted(file for file in (graph.root / path).rglob("*") if file.is_file())
        yield from (file.relative_to(graph.root) for file in files if not file.match("shard-*.parquet"))


def stats_files(graph: Graph) -> dict[str, Path]:
    """Stage -> the values of its training run, even if DVC skipped it; stages without such a file are left out."""
    files = {stage.name: logs_folder(graph.root, stage.name.partition("@")[0]) / STATS_FILE for stage in graph.stages}
    return {name: file for name, file in files.items() if file.is_file()}
