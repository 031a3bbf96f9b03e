"""Station `dataset`: pairs -> a verdict on each, by the scores that stand beside it. Nothing is painted again.

In: the columns id, instruction_id, task, instruction, model_revision and score_* of `data/pairs` and of the imported folders
that are mixed in; pictures only of the few pairs shown; `models/router`, where it is asked.
Out: `data/dataset/shard-*.parquet` of Verdict, one for each shard of pairs, `shard-mixN-*` for the N-th mixed folder;
`sheet_<task>.png` and `data_card.md` for people; `summary.json` with counts per task and gate, what was mixed in, and the thresholds
that were in force.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field
from tqdm import tqdm

from emuedit import config
from emuedit.data import data_card, filters
from emuedit.data.filters import SCORE, Bounds, FilterResult, Filters
from emuedit.data.publish import Summary, fingerprint, publish, read_summary, scratch_folder
from emuedit.data.records import Verdict
from emuedit.data.shards import write_shard
from emuedit.editor import task_reassignment as routing

IN, OUT, ROUTER = "data/pairs", "data/dataset", "models/router"
NOT_BEST = "not_best"
PROBABILITY = "task_probability"
ROUTED = "routed"


class DatasetError(ValueError):
    """Raised when there is nothing to judge, and when nothing was kept."""


def _others(mix: dict[str, Filters]) -> dict[str, Filters]:
    if IN in mix:
        raise ValueError(f"want folders besides {IN}, which has dataset.gates; got it among {sorted(mix)}")
    return mix


class Routing(config.Params):
    """What the router may say about the tasks of pairs, probabilities in [0, 1]."""

    reassign: float = Field(gt=0.5, le=1)
    """A task at least this probable takes the place of the pair's own (Emu Edit; the threshold is ours)."""
    reject: float = Field(ge=0, le=0.5)
    """Pairs whose task is then less probable are rejected, as `task_probability_min`."""


class DatasetParams(config.Params):
    """Knobs of the station."""

    gates: Filters
    """Task -> score -> {min: x} and/or {max: y}. A task without a row has the row `default`; a row stands for itself alone."""
    mix: Annotated[dict[str, Filters], AfterValidator(_others)]
    """Folder of imported pairs -> gates of its own, as above. It is judged, and trained on, along with `data/pairs`."""
    routing: Routing | None
    """null: the router is not asked. Tasks that it does not know are left alone."""
    rank_by: str = Field(min_length=1)
    """Score by which the candidates of one instruction are ranked, the highest first; those without it come last, as painted."""
    keep: int = Field(ge=1)
    """Candidates of an instruction that may be kept."""
    sheet_pairs: int = Field(ge=1)
    """Kept pairs on the contact sheet of a task, and as many rejected ones."""
    licences: dict[str, str]
    """Part of the world -> its licence, for the data card; the card calls other parts `not stated`."""

    @property
    def sources(self) -> dict[str, Filters]:
        """Folders of pairs with their gates: `data/pairs`, then what is mixed in, by name."""
        return {IN: self.gates} | dict(sorted(self.mix.items()))

    def row(self, task: str, folder: str = IN) -> dict[str, Bounds]:
        """The gates of a task in a folder of pairs."""
        return filters.filters_for(self.sources[folder], task)


def judge(table: pa.Table, params: DatasetParams, *mixed: tuple[pa.Table, Filters]) -> FilterResult:
    """The heart: one query over the columns instruction_id, task and score_* of N pairs. A pair that fails nothing is kept.

    Of the pairs of one instruction that pass the gates, the `keep` best by `rank_by` stay; the others fail as `not_best`.
    `mixed`: pairs that follow them, each lot with gates of its own. Under `routing` the column score_task_probability is
    asked too, of all. Raises FiltersError for a score that is no column.
    """
    filters.check_scores(table, [*filters.scores_used(params.gates), params.rank_by])
    found = filters.concat_results([filters.apply_filters(*lot) for lot in ((table, params.gates), *mixed)])
    table = _joined(table, *(lot for lot, _ in mixed))
    if params.routing is not None:
        filters.check_scores(table, [PROBABILITY])
        unlikely = filters.score_values(table, PROBABILITY) < params.routing.reject  # a comparison with NaN is False
        found = FilterResult((*found.reasons, f"{PROBABILITY}_min"), np.concatenate([found.failed, unlikely[None]]))
    beaten = _beaten(table, found.kept, filters.score_values(table, params.rank_by), params.keep)
    return FilterResult((*found.reasons, NOT_BEST), np.concatenate([found.failed, beaten[None]]))


def _joined(*tables: pa.Table) -> pa.Table:
    """One table; a score that is no column of some is undefined there."""
    return pa.concat_tables(tables, promote_options="default")


def _beaten(table: pa.Table, passed: npt.NDArray[np.bool_], rank: npt.NDArray[Any], keep: int) -> npt.NDArray[np.bool_]:
    """bool [N]: passed, but `keep` others of the same instruction are better; ties go to the earlier pair."""
    rows = np.flatnonzero(passed)
    group, _ = filters.encode_labels(table["instruction_id"])
    group, rank = group[rows], np.where(np.isnan(rank[rows]), -np.inf, rank[rows])
    order = np.lexsort((-rank, group))  # stable: equals stay as painted
    group = group[order]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, int)
    place = np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)]))
    beaten = np.zeros(len(table), bool)
    beaten[rows[order[place >= keep]]] = True
    return beaten


def run(params: DatasetParams, root: Path) -> Summary:
    """Judge all pairs at once, write one shard of verdicts for each shard of pairs, publish to `data/dataset`."""
    made = {folder: read_summary(root / folder) for folder in params.sources}
    _, *others = made
    shards = [
        (folder, name, name.replace("shard-", f"shard-mix{number}-") if number else name)
        for number, folder in enumerate(made)
        for name in sorted(made[folder].shards)
        if Path(name).match("shard-*.parquet")
    ]
    parts = [_columns(root, folder, name) for folder, name, _ in tqdm(shards, unit="shard", desc="dataset: read")]
    if params.routing is not None:
        parts = _routed(parts, params.routing, root)
    own, *mixed = [_joined(*(part for part, (of, *_) in zip(parts, shards, strict=True) if of == folder)) for folder in made]
    if not len(own):
        raise DatasetError(f"want at least one pair in {IN}, got none; see its dropped-*.parquet")
    table = _joined(own, *mixed)
    if mixed and (twice := len(table) - len(table["id"].unique())):
        raise DatasetError(f"want every pair once in {', '.join(made)}, got {twice} again; mend dataset.mix in params.yaml")
    judged = judge(own, params, *zip(mixed, (params.mix[folder] for folder in others), strict=True))
    knobs = params.model_dump(mode="json")
    inputs = [root / folder / "summary.json" for folder in made]
    asked = [root / ROUTER / "summary.json"] if params.routing is not None else []
    scratch = scratch_folder(root, "dataset", fingerprint(knobs, *inputs, *asked, __file__, filters.__file__, routing.__file__))
    ends = np.cumsum([len(part) for part in parts])
    for (*_, name), rows in zip(
        tqdm(shards, unit="shard", desc="dataset: write"), np.split(np.arange(len(table)), ends[:-1]), strict=True
    ):
        if not (scratch / name).exists():
            write_shard(scratch / name, verdicts(table, judged, params, rows), Verdict)
    counts = tally(table, judged)
    if not counts["kept"]:
        raise DatasetError(f"want at least one pair that passes, got {dict(counts)}; loosen dataset.gates in params.yaml")
    in_force = {task: params.row(task) for task in sorted(set(own["task"].to_pylist()))}
    tasks, of_shard = (
        filters.encode_labels(table["task"])[0].astype(np.int64),
        np.searchsorted(ends, np.arange(len(table)), side="right"),
    )
    few = data_card.chosen(tasks, judged.failed, of_shard, params.sheet_pairs)
    files = [root / folder / name for folder, name, _ in shards]
    shown = data_card.looked_up([files[i] for i in of_shard[few]], verdicts(table, judged, params, few))
    for name, image in data_card.sheets(shown).items():
        image.save(scratch / name)
    revisions = sorted(set(own["model_revision"].unique().to_pylist()))
    _, *kept = np.split(judged.kept, np.cumsum([len(own), *map(len, mixed)])[:-1])
    lots = [data_card.Mixed(folder, made[folder], params.mix[folder], some) for folder, some in zip(others, kept, strict=True)]
    written = data_card.text(counts, in_force, revisions, params.licences, made[IN], lots)
    (scratch / data_card.CARD).write_text(written, encoding="utf-8")
    return publish(scratch, root / OUT, "dataset", knobs | {"in_force": in_force}, counts)


def _columns(root: Path, folder: str, name: str) -> pa.Table:
    """What is asked of a shard of pairs, and the folder it lies in."""
    table = filters.read_columns(root / folder / name, "id", "instruction_id", "task", "instruction", "model_revision")
    return table.append_column("folder", pa.array([folder] * len(table), pa.string()))


def _routed(parts: list[pa.Table], knobs: Routing, root: Path) -> list[pa.Table]:
    """With two more columns: the task after the router had its say, and score_task_probability."""
    whole = pa.concat_tables([part.select(["task", "instruction"]) for part in parts])
    texts, tasks = whole["instruction"].to_pylist(), whole["task"].to_pylist()
    known, p = routing.read(texts, root / ROUTER, root / "scratch" / "routed")
    found = routing.reassigned(tasks, texts, known, p, knobs.reassign)
    columns = {ROUTED: pa.array(found.tasks, pa.string())}
    columns[SCORE + PROBABILITY] = pa.array(found.probability, pa.float64(), from_pandas=True)  # NaN is null
    starts = np.cumsum([0, *map(len, parts[:-1])])
    for name, column in columns.items():
        parts = [part.append_column(name, column.slice(i, len(part))) for part, i in zip(parts, starts, strict=True)]
    return parts


def verdicts(table: pa.Table, judged: FilterResult, params: DatasetParams, rows: npt.NDArray[np.int64]) -> list[Verdict]:
    """The records of some rows: every score of a gate or the ranking, and the gates of the pair's own folder and task.

    Filters are those of the task that a pair was made for, also where the router gave it to another.
    """
    asked = {params.rank_by} | ({PROBABILITY} if params.routing is not None else set())
    names = sorted(asked.union(*map(filters.scores_used, params.sources.values())))
    some = table.take(rows)
    final = some[ROUTED if params.routing is not None else "task"].to_pylist()
    scores = [some[SCORE + name].to_pylist() for name in names]
    failed = judged.failed[:, rows]
    made = []
    for n, (pair_id, task, folder) in enumerate(zip(*(some[name].to_pylist() for name in ("id", "task", "folder")), strict=True)):
        reasons = tuple(judged.reasons[r] for r in np.flatnonzero(failed[:, n]))
        values = {name: column[n] for name, column in zip(names, scores, strict=True)}
        made.append(Verdict(pair_id, not reasons, final[n], reasons, dict(params.row(task, folder)), values))
    return made


def tally(table: pa.Table, judged: FilterResult) -> Counter[str]:
    """Counts over all and per task: pairs, kept, instructions with a kept pair, and how many failed each gate."""
    codes, tasks = filters.encode_labels(table["task"])
    instruction, _ = filters.encode_labels(table["instruction_id"])
    kept = judged.kept

    def per_task(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(codes[which], minlength=len(tasks))

    with_one = np.zeros(len(table), bool)
    with_one[np.flatnonzero(kept)[np.unique(instruction[kept], return_index=True)[1]]] = True
    told = {"pairs": per_task(np.ones(len(table), bool)), "kept": per_task(kept), "kept_instructions": per_task(with_one)}
    if ROUTED in table.column_names:
        told["reassigned"] = per_task(np.asarray(pc.not_equal(table[ROUTED], table["task"]).to_numpy()))
    told |= {reason: per_task(row) for reason, row in zip(judged.reasons, judged.failed, strict=True)}
    counts: Counter[str] = Counter()
    for name, numbers in told.items():
        for task, count in zip(tasks, numbers, strict=True):
            if count or name in ("pairs", "kept", "reassigned"):
                counts[name] += int(count)
                counts[f"{task}.{name}"] += int(count)
    return counts


if __name__ == "__main__":
    run(config.load(DatasetParams, "dataset"), Path())
