"""Generate the data card of a filtered set of pairs, and contact sheets of kept and rejected pairs."""

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
from emuedit.data.filters import Filters, ScoreBounds
from emuedit.data.png import decode_png
from emuedit.data.publish import Summary
from emuedit.data.records import Verdict
from emuedit.runtime import rng

CARD = "card.md"
NOT_STATED = "not stated"
LIMITS = (
    "The filters use scores of neural networks. Errors that these networks miss remain in the kept pairs.",
    "A kept pair is not necessarily correct. The precision is known only from a sample checked by people or an oracle.",
    "Generated images and instructions have the biases of the models that generated them. No person wrote or checked them.",
    "Candidates of one instruction and instructions of one caption share their source image, and several captions may describe "
    "one image: split by image, not by pair.",
    "Candidates exist only if the detector found the object to edit: missed objects are never edited.",
)
IntArray = npt.NDArray[np.int64]
_CARD_TEMPLATE = """\
# Data card: edited pairs of the world {world}

The stage `dataset` generated this card from its counts. Contact sheets are next to it: `sheet_<task>.png`.

{kept} of {n_pairs} {origin} pairs are kept ({share}), for {n_instructions} instructions of {n_tasks} tasks.

## How the pairs were generated

An LLM turns captions into instructions. The base model generates the image of the first caption and, with soft-mask
attention control, the image of the second. Annotators produce the targets of vision tasks. Every candidate is scored.
A candidate is kept when it passes all filters of its task and is among the best of its instruction. Rejected pairs keep their
verdicts.

## Counts

| task | pairs | kept | share | instructions with a kept pair |
|---|---:|---:|---:|---:|
{counts}
{reassigned}
## Filters

Number of pairs that failed each filter. A pair may fail several.

| failed | all | {tasks} |
|---|---:|{alignment}
{failed}

Thresholds:

{filters}

## Sources

Revision of the base_model: {revisions}.

| part | name | licence |
|---|---|---|
{parts}
{imported}
## Known limits

{limits}

## Reproduce

```sh
dvc repro dataset
```

The same parameters, code and models give the same pairs. The pairs have the key `{key}` and these parameters:

```json
{params}
```
"""
_IMPORTED_TEMPLATE = """
Imported pairs have separate filters and are part of the data. `emuedit export` omits them.

| folder | source | licence | pairs | kept | filters |
|---|---|---|---:|---:|---|
{rows}
"""
_COUNTS_BESIDE_REASONS = ("pairs", "kept", "kept_instructions", "reassigned")
_CAPTION_LINES = 20
_ROWS_PER_READ = 16  # pairs in memory at a time
_PICTURE_COLUMNS = ("source", "target", "mask")


@dataclass(frozen=True)
class ImportedPairs:
    """A folder of imported pairs that were filtered together with the generated ones."""

    folder: str
    summary: Summary
    """Summary of the import; its params state source and licence."""
    filters: Filters
    kept: npt.NDArray[np.bool_]
    """Whether each pair is kept, [n_pairs]."""


@dataclass(frozen=True)
class CardExample:
    """One column of a contact sheet. Images are PNGs."""

    verdict: Verdict
    instruction: str
    before: bytes
    after: bytes
    mask: bytes | None


def choose_examples(tasks: IntArray, failed: npt.NDArray[np.bool_], shards: IntArray, max_examples: int) -> IntArray:
    """Choose rows to show from N pairs: up to `max_examples` kept and as many rejected pairs per task, ascending.

    `tasks` and `shards`: task index and shard index of each pair, [N]. `failed`: bool [R, N] for R reasons; a kept pair has
    none. All tasks prefer the same shards, so that few shards are opened. Rejected pairs are chosen round-robin over the sets
    of reasons that occur, so that every set is shown before one is repeated.
    """
    random = rng("card", "shown")
    shard_rank = random.permutation(int(shards.max()) + 1)[shards]
    order = np.lexsort((random.random(len(tasks)), shard_rank))
    reason_set = np.unique(np.packbits(failed, axis=0), axis=1, return_inverse=True)[1].ravel()  # [N]
    kept: npt.NDArray[np.bool_] = np.logical_not(failed.any(axis=0))
    chosen: list[int] = []
    for task in np.unique(tasks):
        for is_kept in (True, False):
            rows = order[(tasks[order] == task) & (kept[order] == is_kept)]
            chosen += _round_robin(rows, reason_set[rows], max_examples)
    return np.array(sorted(chosen), np.int64)


def _round_robin(rows: IntArray, groups: IntArray, n: int) -> list[int]:
    """At most `n` rows: the first row of every group, then the second of every group, and so on."""
    members = [rows[groups == group][:n] for group in dict.fromkeys(groups.tolist())]
    ranked = sorted((turn, number, int(row)) for number, own_rows in enumerate(members) for turn, row in enumerate(own_rows))
    return [row for *_, row in ranked[:n]]


def load_examples(shards: Sequence[Path], verdicts: Sequence[Verdict]) -> list[CardExample]:
    """Load the pairs of the given verdicts. `shards`: the shard of each. Only a few rows are in memory at a time."""
    by_shard: dict[Path, dict[str, Verdict]] = {}
    for shard, verdict in zip(shards, verdicts, strict=True):
        by_shard.setdefault(shard, {})[verdict.pair_id] = verdict
    examples = []
    for shard, verdict_of in sorted(by_shard.items()):
        columns = ["id", "instruction", *_PICTURE_COLUMNS]
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=_ROWS_PER_READ, columns=columns):
            rows = [number for number, pair_id in enumerate(batch["id"].to_pylist()) if pair_id in verdict_of]
            for row in batch.take(pa.array(rows, pa.int64())).to_pylist():
                before, after, mask = (row[column] and row[column]["bytes"] for column in _PICTURE_COLUMNS)
                examples.append(CardExample(verdict_of[row["id"]], row["instruction"], before, after, mask))
    return examples


def contact_sheets(examples: Iterable[CardExample]) -> dict[str, Any]:
    """Draw one sheet per task, `sheet_<task>.png` -> image: kept pairs first, then rejected ones.

    The caption of a pair has its instruction, the reasons why it was rejected and its scores.
    """
    by_task: dict[str, list[CardExample]] = {}
    for example in examples:
        by_task.setdefault(example.verdict.task, []).append(example)
    return {f"sheet_{task}.png": _draw_sheet(task, by_task[task]) for task in sorted(by_task)}


def _draw_sheet(task: str, examples: list[CardExample]) -> Any:
    examples = sorted(examples, key=lambda example: (not example.verdict.kept, example.verdict.pair_id))
    rows = [
        ("before", [decode_png(example.before) for example in examples]),
        ("after", [decode_png(example.after) for example in examples]),
    ]
    masks = [decode_png(example.mask) for example in examples if example.mask is not None]
    if len(masks) == len(examples):
        rows.append(("mask", [mask[..., None].repeat(3, -1) for mask in masks]))
    kept = [example.verdict.kept for example in examples]
    title = f"{task}: {sum(kept)} kept pairs (green), {len(kept) - sum(kept)} rejected pairs (red)"
    captions = [_format_caption(example) for example in examples]
    return contact_sheet.picture_grid(rows, captions, _CAPTION_LINES, title, ("after", kept))


def _format_caption(example: CardExample) -> str:
    verdict = example.verdict
    outcome = "kept" if verdict.kept else f"rejected: {', '.join(verdict.reasons)}"
    scores = (f"{'none' if value is None else f'{value:.2f}'} {name}" for name, value in sorted(verdict.scores.items()))
    return "\n".join((example.instruction, outcome.replace("_", " "), *(score.replace("_", " ") for score in scores)))


def render_card(
    counts: Mapping[str, int],
    filters: Mapping[str, Any],
    revisions: Sequence[str],
    licences: Mapping[str, str],
    summary: Summary,
    imported: Sequence[ImportedPairs],
) -> str:
    """Render the data card as Markdown.

    `counts` are for all pairs; `summary`, `filters` and `revisions` (of the base model) for the generated pairs
    only. `licences`: part of the world -> licence; other parts are listed as `not stated`.
    """
    world = {"name": NOT_STATED, **summary.params.get("world", {})}
    tasks = sorted(key.partition(".")[0] for key in counts if key.endswith(".pairs"))
    reasons = sorted(key for key in counts if "." not in key and key not in _COUNTS_BESIDE_REASONS)
    params = {key: value for key, value in summary.params.items() if key not in ("world", "recipes")}
    return _CARD_TEMPLATE.format(
        world=world["name"],
        n_pairs=counts["pairs"],
        kept=counts["kept"],
        share=f"{counts['kept'] / counts['pairs']:.1%}",
        origin="generated and imported" if imported else "generated",
        n_instructions=counts["kept_instructions"],
        n_tasks=len(tasks),
        counts="\n".join(_format_count_row(task, counts) for task in tasks),
        reassigned=_format_reassigned(tasks, counts),
        tasks=" | ".join(tasks),
        alignment="---:|" * len(tasks),
        failed="\n".join(_format_reason_row(reason, tasks, counts) for reason in reasons),
        filters="\n".join(f"- {task}: {_format_bounds(bounds)}" for task, bounds in sorted(filters.items())),
        revisions=", ".join(f"`{revision}`" for revision in revisions) or NOT_STATED,
        parts="\n".join(
            f"| {part} | `{name}` | {licences.get(part, NOT_STATED)} |" for part, name in sorted(world.items()) if part != "name"
        ),
        imported=_IMPORTED_TEMPLATE.format(rows="\n".join(map(_format_imported_row, imported))) if imported else "",
        limits="\n".join(f"- {limit}" for limit in LIMITS),
        key=summary.key,
        params=json.dumps(params, sort_keys=True),
    )


def _format_reassigned(tasks: Sequence[str], counts: Mapping[str, int]) -> str:
    """Number of pairs that the router reassigned; empty if tasks were not reassigned."""
    if "reassigned" not in counts:
        return ""
    by_task = ", ".join(f"{task} {n}" for task in tasks if (n := counts.get(f"{task}.reassigned", 0)))
    return f"\nThe router reassigned {counts['reassigned']} of them to another task{': ' if by_task else ''}{by_task}.\n"


def _format_count_row(task: str, counts: Mapping[str, int]) -> str:
    n_pairs, n_kept = counts[f"{task}.pairs"], counts[f"{task}.kept"]
    return f"| {task} | {n_pairs} | {n_kept} | {n_kept / n_pairs:.1%} | {counts.get(f'{task}.kept_instructions', 0)} |"


def _format_reason_row(reason: str, tasks: Sequence[str], counts: Mapping[str, int]) -> str:
    by_task = " | ".join(str(counts.get(f"{task}.{reason}", 0)) for task in tasks)
    return f"| {reason} | {counts[reason]} | {by_task} |"


def _format_imported_row(pairs: ImportedPairs) -> str:
    filters = "; ".join(f"{task}: {_format_bounds(bounds)}" for task, bounds in sorted(pairs.filters.items()))
    source, licence = (pairs.summary.params.get(key, NOT_STATED) for key in ("source", "licence"))
    return f"| `{pairs.folder}` | `{source}` | {licence} | {len(pairs.kept)} | {pairs.kept.sum()} | {filters} |"


def _format_bounds(score_bounds: Mapping[str, ScoreBounds]) -> str:
    signs = {"min": ">=", "max": "<="}
    texts = [
        f"`{score}` {signs[edge]} {value:g}" for score, bounds in sorted(score_bounds.items()) for edge, value in bounds.items()
    ]
    return ", ".join(texts) or "none"
