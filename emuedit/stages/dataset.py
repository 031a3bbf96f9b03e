"""Stage `dataset`: select the pairs to keep by their stored scores. Nothing is regenerated.

In: the columns id, instruction_id, parent_ids, task, instruction, model_revision and score_* of `data/pairs` and of imported
folders that are mixed in; images only of the few displayed pairs, and once all of them if the world's benchmark is a folder of
images; `models/router`, if tasks are reassigned.
Out: `data/dataset/shard-*.parquet` of Verdict, one per shard of pairs, `shard-mixN-*` for the N-th imported folder;
`sheet_<task>.png` and `card.md` for inspection; `summary.json` with counts per task and filter, and the thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field

from emuedit import config
from emuedit.data import data_card, filters, selection
from emuedit.data.dependencies import find_file, work_key
from emuedit.data.filters import FilterResult, Filters, ScoreBounds
from emuedit.data.publish import Summary, publish, read_summary, scratch_folder
from emuedit.data.records import Verdict
from emuedit.data.selection import PROBABILITY, REASSIGNED_TASK
from emuedit.data.shards import SCORE_PREFIX, write_shard
from emuedit.metrics import benchmark_copies
from emuedit.predictor import task_reassignment
from emuedit.progress import Progress
from emuedit.stages import stage_main

IN, OUT, ROUTER = "data/pairs", "data/dataset", "models/router"
HEADLINE = "{kept} of {pairs} pairs kept, for {kept_instructions} instructions"
IN_BENCHMARK = "in_benchmark"
"""Column of the pairs, and reason: one of their images is the benchmark's."""


class DatasetError(ValueError):
    """Raised if there are no pairs, or none are kept."""


def _check_mix(mix: dict[str, Filters]) -> dict[str, Filters]:
    if IN in mix:
        raise ValueError(f"want folders besides {IN}, which has dataset.filters; got it among {sorted(mix)}")
    return mix


class ReassignmentParams(config.Params):
    """Thresholds of task reassignment. Probabilities in [0, 1]."""

    reassign: float = Field(gt=0.5, le=1)
    """Minimum probability of a task to replace the pair's own (Emu Edit; the threshold is ours). Annotated tasks neither replace
    nor are replaced."""
    reject: float = Field(ge=0, le=0.5)
    """Pairs whose final task is less probable are rejected with `task_probability_min`."""


class DatasetParams(config.Params):
    """Params of the stage."""

    world: config.World | None = None
    """The world; only its `benchmark` is used. None: pairs are not compared with a benchmark."""
    filters: Filters
    """Task -> score -> {min: x} and/or {max: y}. Tasks without an entry use `default`."""
    mix: Annotated[dict[str, Filters], AfterValidator(_check_mix)] = Field({})
    """Folder of imported pairs -> its filters. The pairs are filtered and used for training together with `data/pairs`."""
    reassignment: ReassignmentParams | None = ReassignmentParams(reassign=0.9, reject=0.02)
    """null: tasks are not reassigned. Pairs of tasks that the predictor does not have are not reassigned."""
    rank_by: str = Field("clip_direction", min_length=1)
    """Score by which the candidates of an instruction are ranked, highest first; candidates without it rank last."""
    keep_per_instruction: int = Field(1, ge=1)
    """Maximum number of kept candidates per instruction."""
    sheet_pairs: int = Field(6, ge=1)
    """Number of kept pairs, and of rejected pairs, on a task's contact sheet."""
    licences: dict[str, str] = Field({})
    """Part of the world -> its licence, for the data card; missing parts are `not stated`."""

    @property
    def sources(self) -> dict[str, Filters]:
        """Folder of pairs -> filters: `data/pairs`, then imported folders by name."""
        return {IN: self.filters} | dict(sorted(self.mix.items()))

    def filters_for(self, task: str, folder: str = IN) -> dict[str, ScoreBounds]:
        """The filters of a task in a folder of pairs."""
        return filters.filters_for(self.sources[folder], task)


@dataclass(frozen=True)
class ShardRef:
    """A shard of pairs, and the name of its shard of verdicts."""

    folder: str
    name: str
    verdicts: str

    def path(self, root: Path) -> Path:
        """Path of the pairs."""
        return root / self.folder / self.name


@dataclass(frozen=True)
class PairTable:
    """The columns of all pairs, in the order of their shards; images are not read."""

    shards: tuple[ShardRef, ...]
    parts: tuple[pa.Table, ...]  # one per shard

    def of(self, folder: str) -> pa.Table:
        """The pairs of a folder. Scores that are missing in some shards are null there."""
        return selection.concat(*(p for p, shard in zip(self.parts, self.shards, strict=True) if shard.folder == folder))

    def all(self) -> pa.Table:
        """All pairs, in the order of the shards."""
        return selection.concat(*self.parts)

    def with_columns(self, columns: Mapping[str, pa.Array]) -> "PairTable":
        """The same pairs with more columns, given for all pairs."""
        starts = np.cumsum([0, *map(len, self.parts[:-1])])
        parts = self.parts
        for name, column in columns.items():
            parts = tuple(part.append_column(name, column.slice(i, len(part))) for part, i in zip(parts, starts, strict=True))
        return PairTable(self.shards, parts)

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Row after the last row of each shard."""
        return np.cumsum([len(part) for part in self.parts])


def filter_pairs(table: pa.Table, params: DatasetParams, *mixed: tuple[pa.Table, Filters]) -> FilterResult:
    """The core function: filter by the columns instruction_id, task and score_* of N pairs.

    A pair that fails nothing is kept. Of the candidates of one instruction that pass the filters, the `keep_per_instruction` best
    by `rank_by` are kept; the others fail with `not_best`. `mixed`: (imported pairs, their filters), per folder. With
    `reassignment`, the column score_task_probability is required. The column `in_benchmark`, bool, is optional.
    Raises FiltersError for a score that is not a column.
    """
    filters.check_scores(table, [*filters.scores_used(params.filters), params.rank_by])
    result = filters.concat_results([filters.apply_filters(*lot) for lot in ((table, params.filters), *mixed)])
    pairs = selection.concat(table, *(lot for lot, _ in mixed))
    if params.reassignment is not None:
        filters.check_scores(pairs, [PROBABILITY])
        unlikely = filters.score_values(pairs, PROBABILITY) < params.reassignment.reject  # a comparison with NaN is False
        result = result.with_reason(f"{PROBABILITY}_min", unlikely)
    if IN_BENCHMARK in pairs.column_names:
        result = result.with_reason(IN_BENCHMARK, pairs[IN_BENCHMARK].to_numpy())
    return selection.reject_all_but_best(pairs, result, params.rank_by, params.keep_per_instruction, len(table))


def run(params: DatasetParams, root: Path) -> Summary:
    """Load, reassign, filter, write verdicts, report; publish to `data/dataset`."""
    summaries = {folder: read_summary(root / folder) for folder in params.sources}
    pairs = _load(summaries, root)
    if params.reassignment is not None:
        pairs = _reassign(pairs, params.reassignment, root)
    if params.world is not None and (benchmark := find_file(params.world.benchmark, root)).is_dir():
        pairs = _find_copies(pairs, benchmark, summaries, root)
    generated, mixed = pairs.of(IN), {folder: pairs.of(folder) for folder in params.sources if folder != IN}
    if not len(generated):
        raise DatasetError(f"want at least one pair in {IN}, got none; see its dropped-*.parquet")
    table = pairs.all()
    if mixed and (n_repeated := len(table) - len(table["id"].unique())):
        raise DatasetError(
            f"want every pair once in {', '.join(summaries)}, got {n_repeated} again; fix dataset.mix in params.yaml"
        )
    result = filter_pairs(generated, params, *((part, params.mix[folder]) for folder, part in mixed.items()))
    recorded = params.model_dump(mode="json", exclude={"world"})
    mixed_summaries = [str(root / folder / "summary.json") for folder in mixed]
    scratch = scratch_folder(root, "dataset", work_key("dataset", recorded, root, *mixed_summaries))
    _write_verdicts(pairs, result, params, scratch)
    counts = selection.count_verdicts(table, result)
    if not counts["kept"]:
        raise DatasetError(f"want at least one pair that passes, got {dict(counts)}; loosen dataset.filters in params.yaml")
    used_filters = {task: params.filters_for(task) for task in sorted(generated["task"].unique().to_pylist())}
    _draw_sheets(pairs, table, result, params, root, scratch)
    imported = [
        data_card.ImportedPairs(folder, summaries[folder], params.mix[folder], result.kept[_rows_of(folder, table)])
        for folder in mixed
    ]
    revisions = sorted(generated["model_revision"].unique().to_pylist())
    card = data_card.render_card(counts, used_filters, revisions, params.licences, summaries[IN], imported)
    (scratch / data_card.CARD).write_text(card, encoding="utf-8")
    return publish(scratch, root / OUT, "dataset", recorded | {"used_filters": used_filters}, counts)


def _rows_of(folder: str, table: pa.Table) -> npt.NDArray[np.bool_]:
    """bool [N]: which of N pairs are from a folder."""
    return np.asarray(pc.equal(table["folder"], folder).to_numpy(), bool)


def _load(summaries: Mapping[str, Summary], root: Path) -> PairTable:
    """The columns of all pairs of these folders."""
    shards = tuple(
        ShardRef(folder, name, name.replace("shard-", f"shard-mix{number}-") if number else name)
        for number, (folder, summary) in enumerate(summaries.items())
        for name in sorted(summary.shards)
        if Path(name).match("shard-*.parquet")
    )
    parts = []
    with Progress("dataset: read scores", len(shards), "shard") as progress:
        for shard in shards:
            names = ("id", "instruction_id", "parent_ids", "task", "instruction", "model_revision")
            table = filters.read_columns(shard.path(root), *names)
            parts.append(table.append_column("folder", pa.array([shard.folder] * len(table), pa.string())))
            progress.advance()
    return PairTable(shards, tuple(parts))


def _reassign(pairs: PairTable, params: ReassignmentParams, root: Path) -> PairTable:
    """Add two columns: the task after reassignment, and score_task_probability."""
    table = pa.concat_tables([part.select(["task", "instruction"]) for part in pairs.parts])
    texts, tasks = table["instruction"].to_pylist(), table["task"].to_pylist()
    known_tasks, probabilities = task_reassignment.predict_tasks(texts, root / ROUTER, root / "scratch" / "task-predictions")
    reassignment = task_reassignment.reassign(tasks, texts, known_tasks, probabilities, params.reassign)
    return pairs.with_columns(
        {
            REASSIGNED_TASK: pa.array(reassignment.tasks, pa.string()),
            SCORE_PREFIX + PROBABILITY: pa.array(reassignment.probability, pa.float64(), from_pandas=True),  # NaN is null
        }
    )


def _find_copies(pairs: PairTable, benchmark: Path, summaries: Mapping[str, Summary], root: Path) -> PairTable:
    """Add the column IN_BENCHMARK, which is also true of the imported pairs of the same session: edits of that image."""
    hashes = {shard.path(root): summaries[shard.folder].shards[shard.name] for shard in pairs.shards}
    copies = benchmark_copies.find_copies(benchmark, hashes, root / "scratch" / "benchmark-copies")
    table = pairs.all()
    is_imported = pc.not_equal(table["folder"], IN).to_numpy()
    groups = pc.list_element(table["parent_ids"].filter(is_imported), 1)
    of_copies = groups.filter(copies[is_imported]).unique()
    copies[is_imported] |= pc.is_in(groups, of_copies).to_numpy()
    return pairs.with_columns({IN_BENCHMARK: pa.array(copies)})


def _write_verdicts(pairs: PairTable, result: FilterResult, params: DatasetParams, scratch: Path) -> None:
    start = 0
    with Progress("dataset: write verdicts", len(pairs.shards), "shard") as progress:
        for shard, part in zip(pairs.shards, pairs.parts, strict=True):
            rows = slice(start, start + len(part))
            if not (scratch / shard.verdicts).exists():
                write_shard(scratch / shard.verdicts, verdicts(part, result.take(rows), params), Verdict)
            start = rows.stop
            progress.advance()


def verdicts(table: pa.Table, result: FilterResult, params: DatasetParams) -> list[Verdict]:
    """The verdicts of N pairs, with every score that a filter or the ranking uses, and the filters of folder and task.

    The filters are those of the original task, also for reassigned pairs. A score without a column is None.
    """
    reassigned = params.reassignment is not None
    ranking = {params.rank_by, PROBABILITY} if reassigned else {params.rank_by}
    names = sorted(ranking.union(*map(filters.scores_used, params.sources.values())))
    tasks = table[REASSIGNED_TASK if reassigned else "task"].to_pylist()
    present = {name for name in names if SCORE_PREFIX + name in table.column_names}
    columns: dict[str, list[Any]] = {
        name: table[SCORE_PREFIX + name].to_pylist() if name in present else [None] * len(table) for name in names
    }
    records = []
    origins = zip(*(table[name].to_pylist() for name in ("id", "task", "folder")), strict=True)
    for number, (pair_id, task, folder) in enumerate(origins):
        reasons = tuple(result.reasons[r] for r in np.flatnonzero(result.failed[:, number]))
        scores = {name: column[number] for name, column in columns.items()}
        bounds = dict(params.filters_for(task, folder))
        records.append(Verdict(pair_id, not reasons, tasks[number], reasons, bounds, scores))
    return records


def _draw_sheets(
    pairs: PairTable, table: pa.Table, result: FilterResult, params: DatasetParams, root: Path, scratch: Path
) -> None:
    """Contact sheets of kept and rejected pairs, one per task."""
    task_codes = filters.encode_labels(table["task"])[0].astype(np.int64)
    shard_of = np.searchsorted(pairs.ends, np.arange(len(table)), side="right")
    rows = data_card.choose_examples(task_codes, result.failed, shard_of, params.sheet_pairs)
    files = [pairs.shards[number].path(root) for number in shard_of[rows]]
    examples = data_card.load_examples(files, verdicts(table.take(rows), result.take(rows), params))
    for name, image in data_card.contact_sheets(examples).items():
        image.save(scratch / name)


if __name__ == "__main__":
    stage_main("dataset")
