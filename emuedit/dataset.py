"""Station `dataset`: pairs -> a verdict on each, by the scores that stand beside it. Nothing is painted again.

In: the columns id, instruction_id, task, model_revision and score_* of `data/pairs`; pictures only of the few pairs shown.
Out: `data/dataset/shard-*.parquet` of Verdict, one for each shard of pairs; `sheet_<task>.png` and `card.md` for people;
`summary.json` with counts per task and gate and the thresholds that were in force.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field
from tqdm import tqdm

from emuedit import card, gates
from emuedit import params as house
from emuedit.gates import SCORE, Bounds, Gates, Judged
from emuedit.records import Summary, Verdict, fingerprint, publish, read_summary, scratch_folder, write_shard

IN, OUT = "data/pairs", "data/dataset"
NOT_BEST = "not_best"


class DatasetError(ValueError):
    """Raised when there is nothing to judge, and when nothing was kept."""


class Params(house.Params):
    """Knobs of the station."""

    gates: Gates
    """Task -> score -> {min: x} and/or {max: y}. A task without a row has the row `default`; a row stands for itself alone."""
    rank_by: str = Field(min_length=1)
    """Score by which the candidates of one instruction are ranked, the highest first; those without it come last, as painted."""
    keep: int = Field(ge=1)
    """Candidates of an instruction that may be kept."""
    sheet_pairs: int = Field(ge=1)
    """Kept pairs on the contact sheet of a task, and as many rejected ones."""
    licences: dict[str, str]
    """Part of the world -> its licence, for the data card; the card calls other parts `not stated`."""

    def row(self, task: str) -> dict[str, Bounds]:
        """The gates of a task."""
        return gates.row(self.gates, task)


def judge(table: pa.Table, params: Params) -> Judged:
    """The heart: one query over the columns instruction_id, task and score_* of N pairs. A pair that fails nothing is kept.

    Of the pairs of one instruction that pass the gates, the `keep` best by `rank_by` stay; the others fail as `not_best`.
    Raises GatesError for a score that is no column.
    """
    gates.require(table, [*gates.asked(params.gates), params.rank_by])
    found = gates.failures(table, params.gates)
    beaten = _beaten(table, found.kept, gates.numbers(table, params.rank_by), params.keep)
    return Judged((*found.reasons, NOT_BEST), np.concatenate([found.failed, beaten[None]]))


def _beaten(table: pa.Table, passed: npt.NDArray[np.bool_], rank: npt.NDArray[Any], keep: int) -> npt.NDArray[np.bool_]:
    """bool [N]: passed, but `keep` others of the same instruction are better; ties go to the earlier pair."""
    rows = np.flatnonzero(passed)
    group, _ = gates.codes(table["instruction_id"])
    group, rank = group[rows], np.where(np.isnan(rank[rows]), -np.inf, rank[rows])
    order = np.lexsort((-rank, group))  # stable: equals stay as painted
    group = group[order]
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, int)
    place = np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)]))
    beaten = np.zeros(len(table), bool)
    beaten[rows[order[place >= keep]]] = True
    return beaten


def run(params: Params, root: Path) -> Summary:
    """Judge all pairs at once, write one shard of verdicts for each shard of pairs, publish to `data/dataset`."""
    made = read_summary(root / IN)
    shards = sorted(name for name in made.shards if Path(name).match("shard-*.parquet"))
    wanted = ("id", "instruction_id", "task", "model_revision")
    parts = [gates.columns(root / IN / name, *wanted) for name in tqdm(shards, unit="shard", desc="dataset: read")]
    table = pa.concat_tables(parts, promote_options="default")
    if not len(table):
        raise DatasetError(f"want at least one pair in {IN}, got none; see its dropped-*.parquet")
    judged = judge(table, params)
    knobs = params.model_dump(mode="json")
    scratch = scratch_folder(root, "dataset", fingerprint(knobs, root / IN / "summary.json", __file__, gates.__file__))
    ends = np.cumsum([len(part) for part in parts])
    for name, rows in zip(
        tqdm(shards, unit="shard", desc="dataset: write"), np.split(np.arange(len(table)), ends[:-1]), strict=True
    ):
        if not (scratch / name).exists():
            write_shard(scratch / name, verdicts(table, judged, params, rows), Verdict)
    counts = tally(table, judged)
    if not counts["kept"]:
        raise DatasetError(f"want at least one pair that passes, got {dict(counts)}; loosen dataset.gates in params.yaml")
    in_force = {task: params.row(task) for task in sorted(set(table["task"].to_pylist()))}
    tasks, of_shard = gates.codes(table["task"])[0].astype(np.int64), np.searchsorted(ends, np.arange(len(table)), side="right")
    few = card.chosen(tasks, judged.failed, of_shard, params.sheet_pairs)
    shown = card.looked_up(root / IN, [shards[i] for i in of_shard[few]], verdicts(table, judged, params, few))
    for name, image in card.sheets(shown).items():
        image.save(scratch / name)
    revisions = sorted(set(table["model_revision"].unique().to_pylist()))
    (scratch / card.CARD).write_text(card.text(counts, in_force, revisions, params.licences, made), encoding="utf-8")
    return publish(scratch, root / OUT, "dataset", knobs | {"in_force": in_force}, counts)


def verdicts(table: pa.Table, judged: Judged, params: Params, rows: npt.NDArray[np.int64]) -> list[Verdict]:
    """The records of some rows: every score of a gate or the ranking, and the gates of the pair's own task."""
    names = sorted({*gates.asked(params.gates), params.rank_by})
    some = table.take(rows)
    scores = [some[SCORE + name].to_pylist() for name in names]
    failed = judged.failed[:, rows]
    made = []
    for n, (pair_id, task) in enumerate(zip(some["id"].to_pylist(), some["task"].to_pylist(), strict=True)):
        reasons = tuple(judged.reasons[r] for r in np.flatnonzero(failed[:, n]))
        values = {name: column[n] for name, column in zip(names, scores, strict=True)}
        made.append(Verdict(pair_id, not reasons, task, reasons, dict(params.row(task)), values))
    return made


def tally(table: pa.Table, judged: Judged) -> Counter[str]:
    """Counts over all and per task: pairs, kept, instructions with a kept pair, and how many failed each gate."""
    codes, tasks = gates.codes(table["task"])
    instruction, _ = gates.codes(table["instruction_id"])
    kept = judged.kept

    def per_task(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(codes[which], minlength=len(tasks))

    with_one = np.zeros(len(table), bool)
    with_one[np.flatnonzero(kept)[np.unique(instruction[kept], return_index=True)[1]]] = True
    told = {"pairs": per_task(np.ones(len(table), bool)), "kept": per_task(kept), "kept_instructions": per_task(with_one)}
    told |= {reason: per_task(row) for reason, row in zip(judged.reasons, judged.failed, strict=True)}
    counts: Counter[str] = Counter()
    for name, numbers in told.items():
        for task, count in zip(tasks, numbers, strict=True):
            if count or name in ("pairs", "kept"):
                counts[name] += int(count)
                counts[f"{task}.{name}"] += int(count)
    return counts


if __name__ == "__main__":
    run(house.load(Params, "dataset"), Path())
