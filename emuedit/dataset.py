"""Station `dataset`: pairs -> a verdict on each, by the scores that stand beside it. Nothing is painted again.

In: the columns id, instruction_id, task, model_revision and score_* of `data/pairs`; pictures only of the few pairs shown.
Out: `data/dataset/shard-*.parquet` of Verdict, one for each shard of pairs; `sheet_<task>.png` and `card.md` for people;
`summary.json` with counts per task and gate and the thresholds that were in force.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator
from tqdm import tqdm

from emuedit import card
from emuedit import params as house
from emuedit.records import Summary, Verdict, fingerprint, publish, read_summary, scratch_folder, write_shard
from emuedit.tasks import task as known_task

IN, OUT = "data/pairs", "data/dataset"
DEFAULT, NOT_BEST = "default", "not_best"
_SCORE = "score_"

Edge = Literal["min", "max"]
Bounds = dict[Edge, float]
EDGES: tuple[tuple[Edge, Callable[..., npt.NDArray[np.bool_]]], ...] = (("min", np.less), ("max", np.greater))


class DatasetError(ValueError):
    """Raised for gates that the pairs cannot answer, and when nothing was kept."""


class Params(house.Params):
    """Knobs of the station."""

    gates: dict[str, dict[str, Bounds]]
    """Task -> score -> {min: x} and/or {max: y}. A task without a row has the row `default`; a row stands for itself alone."""
    rank_by: str = Field(min_length=1)
    """Score by which the candidates of one instruction are ranked, the highest first; those without it come last, as painted."""
    keep: int = Field(ge=1)
    """Candidates of an instruction that may be kept."""
    sheet_pairs: int = Field(ge=1)
    """Kept pairs on the contact sheet of a task, and as many rejected ones."""
    licences: dict[str, str]
    """Part of the world -> its licence, for the data card; the card calls other parts `not stated`."""

    @field_validator("gates")
    @classmethod
    def _whole(cls, gates: dict[str, dict[str, Bounds]]) -> dict[str, dict[str, Bounds]]:
        for row, scores in gates.items():
            if row != DEFAULT:
                known_task(row)
            for score, bounds in scores.items():
                if not bounds or bounds.get("min", -np.inf) > bounds.get("max", np.inf):
                    raise ValueError(f"want {{min: x}}, {{max: y}} or both with min <= max for {row}.{score}, got {bounds}")
        if DEFAULT not in gates:
            raise ValueError(f"want a row {DEFAULT!r} for the tasks without their own, got {sorted(gates)}; it may be empty")
        return gates

    def row(self, task: str) -> dict[str, Bounds]:
        """The gates of a task."""
        return self.gates.get(task, self.gates[DEFAULT])


@dataclass(frozen=True)
class Judged:
    """What N pairs failed. A pair with no failure is kept."""

    reasons: tuple[str, ...]
    """The R names: <score>_min, <score>_max, <score>_missing (a gate asks for a score that is undefined), not_best."""
    failed: npt.NDArray[np.bool_]  # [R, N]

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """bool [N]."""
        return np.asarray(~self.failed.any(0))


def judge(table: pa.Table, params: Params) -> Judged:
    """The heart: one query over the columns instruction_id, task and score_* of N pairs.

    A gate whose score is null fails: what could not be measured was not shown to be good. A task for which a score is never
    defined must not ask for it. Of the pairs of one instruction that pass, the `keep` best by `rank_by` stay.
    Raises DatasetError for a score that is no column.
    """
    names = [name.removeprefix(_SCORE) for name in table.column_names if name.startswith(_SCORE)]
    asked = sorted({score for row in params.gates.values() for score in row})
    if lost := sorted({*asked, params.rank_by} - set(names)):
        raise DatasetError(f"want the scores {lost} of the gates in {IN}, got {names}; mend dataset in params.yaml")
    codes, tasks = _codes(table["task"])
    rows = [params.row(str(task)) for task in tasks]
    reasons, failed = [], []
    for score in asked:
        value = _numbers(table, score)
        for edge, beyond in EDGES:
            bounds = np.array([row.get(score, {}).get(edge, np.nan) for row in rows])
            if not np.isnan(bounds).all():
                reasons.append(f"{score}_{edge}")
                failed.append(beyond(value, bounds[codes]))  # a comparison with NaN is False
        wants = np.array([score in row for row in rows])
        reasons.append(f"{score}_missing")
        failed.append(np.isnan(value) & wants[codes])
    passed = ~np.any(failed, axis=0) if failed else np.ones(len(table), bool)
    reasons.append(NOT_BEST)
    failed.append(_beaten(table, passed, _numbers(table, params.rank_by), params.keep))
    return Judged(tuple(reasons), np.stack(failed))


def _beaten(table: pa.Table, passed: npt.NDArray[np.bool_], rank: npt.NDArray[Any], keep: int) -> npt.NDArray[np.bool_]:
    """bool [N]: passed, but `keep` others of the same instruction are better; ties go to the earlier pair."""
    rows = np.flatnonzero(passed)
    group, _ = _codes(table["instruction_id"])
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
    parts = [_columns(root / IN / name) for name in tqdm(shards, unit="shard", desc="dataset: read")]
    table = pa.concat_tables(parts, promote_options="default")
    if not len(table):
        raise DatasetError(f"want at least one pair in {IN}, got none; see its dropped-*.parquet")
    judged = judge(table, params)
    knobs = params.model_dump(mode="json")
    scratch = scratch_folder(root, "dataset", fingerprint(knobs, root / IN / "summary.json", __file__))
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
    tasks, of_shard = _codes(table["task"])[0].astype(np.int64), np.searchsorted(ends, np.arange(len(table)), side="right")
    few = card.chosen(tasks, judged.failed, of_shard, params.sheet_pairs)
    shown = card.looked_up(root / IN, [shards[i] for i in of_shard[few]], verdicts(table, judged, params, few))
    for name, image in card.sheets(shown).items():
        image.save(scratch / name)
    revisions = sorted(set(table["model_revision"].unique().to_pylist()))
    (scratch / card.CARD).write_text(card.text(counts, in_force, revisions, params.licences, made), encoding="utf-8")
    return publish(scratch, root / OUT, "dataset", knobs | {"in_force": in_force}, counts)


def verdicts(table: pa.Table, judged: Judged, params: Params, rows: npt.NDArray[np.int64]) -> list[Verdict]:
    """The records of some rows: every score of a gate or the ranking, and the gates of the pair's own task."""
    names = sorted({score for row in params.gates.values() for score in row} | {params.rank_by})
    some = table.take(rows)
    scores = [some[_SCORE + name].to_pylist() for name in names]
    failed = judged.failed[:, rows]
    made = []
    for n, (pair_id, task) in enumerate(zip(some["id"].to_pylist(), some["task"].to_pylist(), strict=True)):
        reasons = tuple(judged.reasons[r] for r in np.flatnonzero(failed[:, n]))
        values = {name: column[n] for name, column in zip(names, scores, strict=True)}
        made.append(Verdict(pair_id, not reasons, task, reasons, dict(params.row(task)), values))
    return made


def tally(table: pa.Table, judged: Judged) -> Counter[str]:
    """Counts over all and per task: pairs, kept, instructions with a kept pair, and how many failed each gate."""
    codes, tasks = _codes(table["task"])
    instruction, _ = _codes(table["instruction_id"])
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


def _columns(path: Path) -> pa.Table:
    """The few columns of a shard that a verdict needs: bytes of pictures are not read."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    scores = [name for name in file.schema_arrow.names if name.startswith(_SCORE)]
    return file.read(columns=["id", "instruction_id", "task", "model_revision", *scores]).replace_schema_metadata(None)


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[Any]]:
    """Texts as numbers [N], and what each number stands for."""
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()


def _numbers(table: pa.Table, score: str) -> npt.NDArray[np.float64]:
    """A score [N], NaN where it is null."""
    column = table[_SCORE + score].cast(pa.float64())
    return np.asarray(column.to_numpy(), dtype=np.float64)


if __name__ == "__main__":
    run(house.load(Params, "dataset"), Path())
