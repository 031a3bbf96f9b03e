"""Stage `captions`: read captions from the world's caption source, clean and deduplicate them, write shards.

In: the world's caption source. Out: `data/captions/shard-*.parquet` of Caption, `dropped-*.parquet` of Drop with reasons,
`summary.json`.
"""

from collections import Counter
from functools import partial
from pathlib import Path

from pydantic import Field

from emuedit import config
from emuedit.data import caption_sources, language
from emuedit.data.dependencies import find_file, work_key
from emuedit.data.publish import Summary, publish, resumable_shards, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.data.text_tables import BadRow
from emuedit.progress import Progress
from emuedit.stages import stage_main

OUT = "data/captions"
HEADLINE = "{kept} captions kept, {dropped} rows dropped"


class CaptionsError(ValueError):
    """Raised for a missing caption source and one without usable captions."""


class CaptionsParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world; only its `captions` is used."""
    n_rows: int = Field(ge=1)
    """Maximum number of rows to read from the source."""
    split: str = Field("train", min_length=1)
    """Split to read, for Python files and datasets."""
    column: str = Field("caption", min_length=1)
    """Column or key of the captions in .csv, .jsonl and .parquet files and in datasets."""
    rows_per_shard: int = Field(500, ge=1)
    """Rows per shard, the unit of work for restarts."""
    min_words: int = Field(2, ge=1)
    """Captions with fewer words are dropped."""
    max_words: int = Field(60, ge=1)
    """Captions with more words are dropped."""
    languages: tuple[str, ...] = ()
    """Languages to keep, as ISO 639-1 codes; empty: all."""
    min_language: float = Field(0.2, ge=0, le=1)
    """Minimum probability that a caption is in one of these languages. Short texts get low values."""


def clean(text: str | BadRow | None, index: int, seen: set[str], params: CaptionsParams) -> Caption | Drop:
    """The core function: one row of the source -> a Caption with single spaces, or a Drop with its reason.

    `seen`: `duplicate_key` of the captions kept so far; updated with a kept caption.
    """
    source = params.world.captions
    if isinstance(text, BadRow):
        return Drop(text.text, text.reason, source, index)
    words = (text or "").split()
    caption = " ".join(words)
    key = duplicate_key(caption)
    if not key:
        return Drop(text or "", "empty", source, index)
    if len(words) < params.min_words:
        return Drop(caption, "too_short", source, index)
    if len(words) > params.max_words:
        return Drop(caption, "too_long", source, index)
    if key in seen:
        return Drop(caption, "duplicate", source, index)
    if params.languages and language.probability(caption, params.languages) < params.min_language:
        return Drop(caption, "other_language", source, index)
    seen.add(key)
    return Caption(caption, source, index)


def duplicate_key(caption: str) -> str:
    """A key that is equal for duplicate captions."""
    return caption.casefold().rstrip(" .!")


def run(params: CaptionsParams, root: Path) -> Summary:
    """Read the source shard by shard, reuse finished shards in scratch, publish to `data/captions`."""
    source = find_file(params.world.captions, root)
    if not source.exists():
        hint = config.renamed_hint(params.world.captions)
        raise CaptionsError(f"want the caption source of world {params.world.name!r}, got none at {source.resolve()}{hint}")
    recorded = params.model_dump(mode="json", exclude={"world"}) | {"source": params.world.captions}
    scratch = scratch_folder(root, "captions", work_key("captions", recorded, root, str(source)))
    batches = caption_sources.read_batches(
        source, params.world.captions, params.split, params.column, params.n_rows, params.rows_per_shard
    )
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    with Progress("captions", params.n_rows, "row") as progress:
        for shard in resumable_shards(scratch, batches, partial(_clean_rows, seen=seen, params=params), Caption):
            seen.update(duplicate_key(caption.text) for caption in shard.records)
            counts.update(kept=len(shard.records), dropped=len(shard.drops))
            counts.update(f"dropped_{drop.reason}" for drop in shard.drops)
            progress.advance(len(shard.source[1]))
    if not counts["kept"]:
        raise CaptionsError(f"want at least one caption from {source}, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    return publish(scratch, root / OUT, "captions", recorded, counts)


def _clean_rows(
    batch: tuple[int, list[str | BadRow | None]], seen: set[str], params: CaptionsParams
) -> tuple[list[Caption], list[Drop]]:
    """The captions and drops of a batch of rows (index of the first row, rows)."""
    start, rows = batch
    results = [clean(text, start + offset, seen, params) for offset, text in enumerate(rows)]
    captions = [result for result in results if isinstance(result, Caption)]
    return captions, [result for result in results if isinstance(result, Drop)]


if __name__ == "__main__":
    stage_main("captions")
