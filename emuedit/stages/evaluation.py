"""Stage `evaluation`: evaluate the editor on the benchmark, with an editor that changes nothing as baseline.

In: `models/editor`, `models/router`, `models/inversion`, the world's benchmark, CLIP and DINO.
Out: `reports/evaluation/`: `metrics.json`, `metrics.csv`, `contact_sheet.png`, `shard-<system>-<task>.parquet` of EvalRecord,
`summary.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import Field

from emuedit import config
from emuedit.data.dependencies import find_file, work_key
from emuedit.data.publish import Summary, publish, scratch_folder
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard, write_shard
from emuedit.data.word_list import load_word_list
from emuedit.editor.package_layout import MODELS
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, report
from emuedit.metrics.benchmark import CountingSource, EditSource
from emuedit.metrics.edit_scores import evaluate_system, join_parts, split_edits
from emuedit.metrics.success_table import format_success, success_with_slices
from emuedit.metrics.systems import FEW_EDITS, Systems
from emuedit.models import clip, dino
from emuedit.models.clip import ClipScorer
from emuedit.models.dino import DinoScorer
from emuedit.progress import Progress
from emuedit.runtime import Device, Runtime
from emuedit.stages import batch_divisor, stage_main
from emuedit.tasks import get_task

OUT = "reports/evaluation"
HEADLINE = "{edits} edits evaluated"


class EvaluationParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world: its benchmark, CLIP and DINO."""
    systems: tuple[str, ...] = Field(min_length=1)
    """Systems to compare: `identity` changes nothing, `emuedit` is the editor with the predicted task, `true_task` with the
    true."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks to measure; `overall` averages the trained ones."""
    n_edits: int | None = Field(ge=1)
    """Edits per task; null: all edits of each task in the table of a benchmark folder."""
    settings: EditSettings
    """Settings of the edits; they become the defaults of the registered model."""
    slices: dict[str, str] = Field(default={})
    """Name -> word list (a .txt file): the report also has the success in edits whose texts contain one of the words, and in the
    others, e.g. for words that are new."""
    split: str = "held_out"
    """Split of the benchmark, not used in training. The toy world's has new scenes, but instructions of training templates;
    bench/router.py measures other wordings."""
    device: Device = "auto"
    """Device of the networks: auto, cuda, mps or cpu."""
    dtype: str = "auto"
    """Number format of the editor: auto, float32, bfloat16 or float16."""
    sheet_columns: int = Field(5, ge=1)
    """Edits per task on the contact sheet: the first ones, not the best."""


def run(params: EvaluationParams, root: Path) -> Summary:
    """Evaluate each system on each task, reuse finished edits in scratch, publish to `reports/evaluation`."""
    for name in params.tasks:
        get_task(name)  # fail early for an unknown task
    word_files = {name: find_file(file, root) for name, file in params.slices.items()}
    slices = {name: load_word_list(file) for name, file in word_files.items()}
    runtime = Runtime.choose(params.device, params.dtype)
    named = params.world.model_dump(include={"benchmark", "clip", "dino"}) | {"dtype": runtime.dtype}
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | named
    scorer_paths = [config.resolve_path(path, root) for path in (params.world.clip, params.world.dino)]
    scratch = scratch_folder(
        root, "evaluation", work_key("evaluation", recorded, root, *scorer_paths, *map(str, word_files.values()))
    )
    source = benchmark.load(params.world.benchmark, runtime.device)
    n_edits = {task: benchmark.n_to_measure(source, task, params.split, params.n_edits) for task in params.tasks}

    @cache
    def scorers() -> tuple[ClipScorer, DinoScorer]:
        return clip.load(scorer_paths[0], runtime.device), dino.load(scorer_paths[1], runtime.device)

    work = [(system, task) for system in params.systems for task in params.tasks]
    paths = {item: scratch / f"shard-{item[0]}-{item[1]}.parquet" for item in work}
    n_done = sum(len(part) for (_, task), path in paths.items() for part in split_edits(n_edits[task]) if _is_done(path, part))
    n_in_all = len(params.systems) * sum(n_edits.values())
    print(f"evaluation: {n_in_all} edits in {len(work)} groups, {runtime}", flush=True)
    at_once = max(1, FEW_EDITS // batch_divisor()) if batch_divisor() > 1 else None
    if at_once:
        print(f"evaluation: ran out of memory; retrying with at most {at_once} edits per batch", flush=True)
    with Progress("evaluation", n_in_all, "edit", n_done) as progress:
        steps = params.settings.steps * (1 + params.settings.crop) + 1  # judging and scoring count as one step
        systems = Systems(root / MODELS, params.settings, runtime, lambda n: progress.advance(n / steps), batch_divisor())
        for system, task in work:
            shard, parts = paths[system, task], split_edits(n_edits[task])
            for part in [part for part in parts if not _is_done(shard, part)]:
                edits = source(task, params.split, part.start, len(part))
                records = evaluate_system(system, systems[system], edits, scorers(), params.settings.seed, at_once, part.start)
                write_shard(_part_path(shard, part) if len(parts) > 1 else shard, records, EvalRecord)
                n_done += len(part)
                progress.set_done(n_done)
            if not shard.exists():
                _join_parts(shard, parts)
    records = [record for path in paths.values() for record in _read_records(path, params.sheet_columns)]
    tables = report.summarise(records, params.tasks, slices)
    note = benchmark.describe_judge(source, params.tasks, params.split)
    content = {**({"note": note} if note else {}), **tables, **_edit_counts(source, params.split, n_edits)}
    (scratch / "metrics.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    report.write_csv(scratch / "metrics.csv", tables)
    sheet_system = next((name for name in ("emuedit", "true_task") if name in params.systems), params.systems[0])
    sheet = report.draw_contact_sheet(records, sheet_system, params.tasks, params.sheet_columns, tables["edit_success"])
    sheet.save(scratch / "contact_sheet.png", optimize=True)
    print(format_success(success_with_slices(tables)))
    counts = {
        f"{system}_{task}": sum(record.success for record in records if (record.system, record.task) == (system, task))
        for system, task in work
    }
    return publish(scratch, root / OUT, "evaluation", recorded, counts | {"edits": len(records)})


def _edit_counts(source: EditSource, split: str, n_edits: Mapping[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """The numbers of edits of each task: in the benchmark's table, usable, and measured; empty if it cannot count them."""
    if not isinstance(source, CountingSource):
        return {}
    return {"edits": {task: {**source.count(task, split)._asdict(), "measured": n} for task, n in n_edits.items()}}


def _part_path(shard: Path, part: range) -> Path:
    """The file of a part of a shard; a hidden one, which is not published."""
    return shard.with_name(f".{shard.stem}-{part.start}{shard.suffix}")


def _is_done(shard: Path, part: range) -> bool:
    """Whether the edits of a part are stored: in the shard, or in a file by themselves."""
    return shard.exists() or _part_path(shard, part).exists()


def _join_parts(shard: Path, parts: Sequence[range]) -> None:
    """Write the shard, then delete its parts. Only PNGs are in memory."""
    files = [_part_path(shard, part) for part in parts]
    write_shard(shard, join_parts(read_shard(file, EvalRecord) for file in files), EvalRecord)
    for file in files:
        file.unlink()


def _read_records(path: Path, n_pictures: int) -> list[EvalRecord]:
    """The records of a shard; only the first `n_pictures`, which the sheet shows, keep their images in memory."""
    records = read_shard(path, EvalRecord)
    return records[:n_pictures] + [replace(record, source=b"", output=b"", exact=None) for record in records[n_pictures:]]


if __name__ == "__main__":
    stage_main("evaluation")
