"""What people see of a judged set of pairs: contact sheets of kept and rejected ones, and a data card. Written by code alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data import contact_sheet
from emuedit.data.filters import Bounds, Filters
from emuedit.data.png import decode_png
from emuedit.data.publish import Summary
from emuedit.data.records import Verdict
from emuedit.runtime import rng

CARD = "card.md"
NOT_STATED = "not stated"
LIMITS = (
    "The gates look at scores of networks. What those networks cannot see, nobody has looked at.",
    "Kept does not mean right. How often it is, only a sample says that people, or an oracle, have judged.",
    "Pictures, captions and instructions are as biased as the models that made them; nobody was asked to write or check any.",
    "Candidates of one instruction, and instructions of one caption, share their first picture: split by caption, not by pair.",
    "Which candidates were painted at all depends on the detector: an object that it does not find is never edited.",
)
Ints = npt.NDArray[np.int64]
_TEXT = """\
# Data card: edited pairs of the world {world}

Written by the station `dataset` from what it counted. Contact sheets lie beside it: `sheet_<task>.png`.

{kept} of {n} {origin} pairs are kept ({share}), for {instructions} instructions of {n_tasks} tasks.

## How it was made

Captions are turned into instructions by a language model. The base_model makes the picture of the first caption and, under
soft-mask attention control, that of the second; annotators draw the targets of vision tasks. Every candidate has its scores.
One that passes every gate of its task stays, and of one instruction the best. Rejected pairs keep their verdicts.

## Counts

| task | pairs | kept | share | instructions with a kept pair |
|---|---:|---:|---:|---:|
{counts}
{reassigned}
## Filters

Pairs that failed each gate; one pair may fail several.

| failed | all | {tasks} |
|---|---:|{rule}
{failed}

Thresholds in force:

{gates}

## Sources

Revision of the base_model: {revisions}.

| part | name | licence |
|---|---|---|
{parts}
{mixed}
## Known limits

{limits}

## Made again by

```sh
dvc repro dataset
```

The same parameters, code and models give the same pairs. Those of the pairs have the fingerprint `{mark}`:

```json
{knobs}
```
"""
_MIXED = """
Imported pairs were judged along with the painted ones, by gates of their own. `emuedit export` leaves them out.

| folder | source | licence | pairs | kept | gates |
|---|---|---|---:|---:|---|
{rows}
"""
_NO_GATES = ("pairs", "kept", "kept_instructions", "reassigned")
_LINES = 14
_ROWS = 16  # pairs in memory at a time
_PICTURES = ("source", "target", "mask")


class CardError(ValueError):
    """Raised for pairs that cannot be shown side by side."""


@dataclass(frozen=True)
class Mixed:
    """Imported pairs that were judged along with the painted ones."""

    folder: str
    made: Summary
    """Of the import: it has source and licence."""
    gates: Filters
    kept: npt.NDArray[np.bool_]  # of each pair


@dataclass(frozen=True)
class Shown:
    """One column of a sheet; pictures are PNGs."""

    verdict: Verdict
    instruction: str
    before: bytes
    after: bytes
    mask: bytes | None


def chosen(tasks: Ints, failed: npt.NDArray[np.bool_], shards: Ints, most: int) -> Ints:
    """Rows to show, of N pairs: per task `most` kept and `most` rejected ones, in ascending order.

    `tasks`, `shards`: a number for each pair; `failed`: bool [R, N], a kept pair has failed nothing. Few shards need to be
    opened: one order of shards holds for all tasks. Of the rejected ones every set of reasons has its turn before one comes
    twice.
    """
    chance = rng("card", "shown")
    rank = chance.permutation(int(shards.max()) + 1)[shards]
    order = np.lexsort((chance.random(len(tasks)), rank))
    why = np.unique(np.packbits(failed, axis=0), axis=1, return_inverse=True)[1].ravel()
    kept: npt.NDArray[np.bool_] = np.logical_not(failed.any(axis=0))
    picked: list[int] = []
    for task in np.unique(tasks):
        for wanted in (True, False):
            rows = order[(tasks[order] == task) & (kept[order] == wanted)]
            own = [rows[why[rows] == reason][:most] for reason in dict.fromkeys(why[rows].tolist())]
            turns = sorted((turn, number, int(row)) for number, some in enumerate(own) for turn, row in enumerate(some))
            picked += [row for *_, row in turns[:most]]
    return np.array(sorted(picked), np.int64)


def looked_up(shards: Sequence[Path], verdicts: Sequence[Verdict]) -> list[Shown]:
    """The pairs of some verdicts, each with its shard: a few rows of these shards in memory at a time."""
    picked: dict[Path, dict[str, Verdict]] = {}
    for shard, one in zip(shards, verdicts, strict=True):
        picked.setdefault(shard, {})[one.pair_id] = one
    found = []
    for shard, wanted in sorted(picked.items()):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=_ROWS, columns=["id", "instruction", *_PICTURES]):
            rows = [number for number, pair_id in enumerate(batch["id"].to_pylist()) if pair_id in wanted]
            for row in batch.take(pa.array(rows, pa.int64())).to_pylist():
                before, after, mask = (row[column] and row[column]["bytes"] for column in _PICTURES)
                found.append(Shown(wanted[row["id"]], row["instruction"], before, after, mask))
    return found


def sheets(shown: Iterable[Shown]) -> dict[str, Any]:
    """`sheet_<task>.png` -> an image: kept pairs, then rejected ones; under each what was asked, why not, its scores."""
    by_task: dict[str, list[Shown]] = {}
    for one in shown:
        by_task.setdefault(one.verdict.task, []).append(one)
    made = {}
    for task, own in sorted(by_task.items()):
        own.sort(key=lambda one: (not one.verdict.kept, one.verdict.pair_id))
        rows = [
            ("before", _stacked([one.before for one in own])),
            ("after", _stacked([one.after for one in own])),
        ]
        masks = [decode_png(one.mask) for one in own if one.mask is not None]
        if len(masks) == len(own):
            rows.append(("mask", np.stack(masks)[..., None].repeat(3, -1)))
        marks = ("after", [one.verdict.kept for one in own])
        n_kept = sum(marks[1])
        title = f"{task}: {n_kept} kept pairs (green), {len(own) - n_kept} rejected ones (red)"
        made[f"sheet_{task}.png"] = contact_sheet.grid(rows, [_said(one) for one in own], _LINES, title, marks)
    return made


def _stacked(pictures: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """PNGs -> uint8 [N, H, W, 3]."""
    decoded = [decode_png(png) for png in pictures]
    if len(sizes := {one.shape[:2] for one in decoded}) > 1:
        raise CardError(f"want pictures of one size, got (height, width) {sorted(sizes)}; make or import them of one size")
    return np.stack(decoded)


def _said(one: Shown) -> str:
    why = "KEPT" if one.verdict.kept else "REJECTED: " + ", ".join(one.verdict.reasons)
    scores = (f"{name}={'none' if value is None else f'{value:.3f}'}" for name, value in sorted(one.verdict.scores.items()))
    return f"{one.instruction} {why} {' '.join(scores)}"


def text(
    counts: Mapping[str, int],
    gates: Mapping[str, Any],
    revisions: Sequence[str],
    licences: Mapping[str, str],
    made: Summary,
    mixed: Sequence[Mixed],
) -> str:
    """The data card, Markdown. `made` is the summary of the painted pairs, and `gates` and `revisions` are theirs.

    `counts` are of all pairs. Parts of the world without a licence are `not stated`.
    """
    world = {"name": NOT_STATED, **made.params.get("world", {})}
    tasks = sorted(key.partition(".")[0] for key in counts if key.endswith(".pairs"))
    reasons = sorted(key for key in counts if "." not in key and key not in _NO_GATES)
    told = {"n": counts["pairs"], "kept": counts["kept"], "share": f"{counts['kept'] / counts['pairs']:.1%}"}
    knobs = {key: value for key, value in made.params.items() if key not in ("world", "recipes")}
    return _TEXT.format(
        world=world["name"],
        **told,
        origin="painted and imported" if mixed else "painted",
        instructions=counts["kept_instructions"],
        n_tasks=len(tasks),
        counts="\n".join(_row(task, counts) for task in tasks),
        reassigned=_reassigned(tasks, counts),
        tasks=" | ".join(tasks),
        rule="---:|" * len(tasks),
        failed="\n".join(f"| {why} | {counts[why]} | {_across(why, tasks, counts)} |" for why in reasons),
        gates="\n".join(f"- {task}: {_bounds(row)}" for task, row in sorted(gates.items())),
        revisions=", ".join(f"`{one}`" for one in revisions) or NOT_STATED,
        parts="\n".join(
            f"| {part} | `{name}` | {licences.get(part, NOT_STATED)} |" for part, name in sorted(world.items()) if part != "name"
        ),
        mixed=_MIXED.format(rows="\n".join(map(_imported, mixed))) if mixed else "",
        limits="\n".join(f"- {limit}" for limit in LIMITS),
        mark=made.fingerprint,
        knobs=json.dumps(knobs, sort_keys=True),
    )


def _reassigned(tasks: Sequence[str], counts: Mapping[str, int]) -> str:
    """What the router gave to other tasks; nothing where it was not asked."""
    if "reassigned" not in counts:
        return ""
    some = [f"{task} {n}" for task in tasks if (n := counts.get(f"{task}.reassigned", 0))]
    return f"\nThe router gave {counts['reassigned']} of them to another task{': ' if some else ''}{', '.join(some)}.\n"


def _row(task: str, counts: Mapping[str, int]) -> str:
    n, kept = counts[f"{task}.pairs"], counts[f"{task}.kept"]
    return f"| {task} | {n} | {kept} | {kept / n:.1%} | {counts.get(f'{task}.kept_instructions', 0)} |"


def _imported(one: Mixed) -> str:
    rules = "; ".join(f"{task}: {_bounds(row)}" for task, row in sorted(one.gates.items()))
    source, licence = (one.made.params.get(key, NOT_STATED) for key in ("source", "licence"))
    return f"| `{one.folder}` | `{source}` | {licence} | {len(one.kept)} | {one.kept.sum()} | {rules} |"


def _across(why: str, tasks: Sequence[str], counts: Mapping[str, int]) -> str:
    return " | ".join(str(counts.get(f"{task}.{why}", 0)) for task in tasks)


def _bounds(row: Mapping[str, Bounds]) -> str:
    signs = {"min": ">=", "max": "<="}
    told = [f"`{score}` {signs[edge]} {value:g}" for score, bounds in sorted(row.items()) for edge, value in bounds.items()]
    return ", ".join(told) or "none"
