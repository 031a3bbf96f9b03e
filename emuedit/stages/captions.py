"""Stage `captions`: read captions from the world's caption source, clean and deduplicate them, write shards.

In: the world's caption source, and the images that it names. Out: `data/captions/shard-*.parquet` of Caption,
`dropped-*.parquet` of Drop with reasons, `summary.json`; `image-*` of a dataset that contains images.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path

from pydantic import Field

from emuedit import config
from emuedit.data import caption_sources, language
from emuedit.data.caption_images import CaptionImages, ImageReference
from emuedit.data.caption_sources import CaptionedImage, CaptionRow
from emuedit.data.dependencies import find_file, stage_dependencies, work_key
from emuedit.data.file_hashes import HashMemory
from emuedit.data.publish import Summary, publish, resumable_shards, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.data.text_tables import BadRow
from emuedit.progress import Progress
from emuedit.stages import stage_main

OUT = "data/captions"
HEADLINE = "{kept} captions kept, {dropped} rows dropped"
_ENTITY = re.compile(r"&(?:\w+|#\d+|#[xX][\da-fA-F]+);")
"""A character reference of HTML. Those without a semicolon are left alone: in `climbing&paragliding`, `&para` is none."""


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
    image_column: str | None = Field(None, min_length=1)
    """Column of the images that the captions describe, in the same sources: paths relative to the file or folder, or images as
    `datasets` stores them. The vision tasks then use these images in place of generated ones. null: there are none."""
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


def clean(
    text: str | BadRow | None,
    index: int,
    seen: set[str],
    params: CaptionsParams,
    image: ImageReference | None = None,
    reason: str | None = None,
) -> Caption | Drop:
    """The core function: one row of the source -> a Caption, see `normalize`, or a Drop with its reason.

    `seen`: `duplicate_key` of the captions kept so far; updated with a kept caption. `image`: the image of the row. `reason`:
    `reason_to_drop` of a row with an image, which was checked before its image.
    """
    source = params.world.captions
    if isinstance(text, BadRow):
        return Drop(text.text, text.reason, source, index)
    caption = normalize(text)
    if image is None and reason is None:
        reason = reason_to_drop(text, params)
    if reason is not None:
        return Drop(caption if duplicate_key(caption) else text or "", reason, source, index)
    key = duplicate_key(caption, image.hash if image else None)
    if key in seen:
        return Drop(caption, "duplicate", source, index)
    seen.add(key)
    return Caption(caption, source, index, image.file if image else None, image.hash if image else None)


def reason_to_drop(text: str | None, params: CaptionsParams) -> str | None:
    """Why a text is dropped, whatever its image and the other captions; None if it is not."""
    caption = normalize(text)
    n_words = len(caption.split())
    if not duplicate_key(caption):
        return "empty"
    if n_words < params.min_words:
        return "too_short"
    if n_words > params.max_words:
        return "too_long"
    if params.languages and language.probability(caption, params.languages) < params.min_language:
        return "other_language"
    return None


def normalize(text: str | None) -> str:
    """A text with single spaces, characters for HTML's character references, and composed accents (Unicode NFC)."""
    characters = _ENTITY.sub(lambda match: html.unescape(match[0]), text or "")
    return " ".join(unicodedata.normalize("NFC", characters).split())


def duplicate_key(caption: str, image_hash: str | None = None) -> str:
    """A key that is equal for duplicate captions of the same image."""
    text = caption.casefold().rstrip(" .!")
    return f"{image_hash}|{text}" if image_hash else text


def run(params: CaptionsParams, root: Path) -> Summary:
    """Read the source shard by shard, reuse finished shards in scratch, publish to `data/captions`."""
    source = find_file(params.world.captions, root)
    if not source.exists():
        hint = config.renamed_hint(params.world.captions)
        raise CaptionsError(f"want the caption source of world {params.world.name!r}, got none at {source.resolve()}{hint}")
    recorded = params.model_dump(mode="json", exclude={"world"}) | {"source": params.world.captions}
    memory = None if params.image_column is None else HashMemory(root)
    scratch = scratch_folder(root, "captions", work_key("captions", recorded, root, str(source), memory=memory))
    images = None
    if params.image_column is not None:
        deps = [*stage_dependencies("captions", root), source]
        images = CaptionImages(params.image_column, source, root, scratch, OUT, deps, memory)
    batches = caption_sources.read_batches(
        source, params.world.captions, params.split, params.column, params.n_rows, params.rows_per_shard, images
    )
    seen: set[str] = set()
    files: set[str] = set()
    counts: Counter[str] = Counter()
    with Progress("captions: count rows", 0, "row", only_if_long=True):
        n_rows = caption_sources.count_rows(source, params.n_rows)
    with Progress("captions", n_rows, "row") as progress:
        make = partial(_clean_rows, seen=seen, params=params, images=images, advance=progress.advance)
        for shard in resumable_shards(scratch, batches, make, Caption):
            seen.update(duplicate_key(caption.text, caption.image_hash) for caption in shard.records)
            files.update(caption.image for caption in shard.records if caption.image)
            counts.update(kept=len(shard.records), dropped=len(shard.drops))
            counts.update(f"dropped_{drop.reason}" for drop in shard.drops)
            if shard.resumed:
                progress.advance(len(shard.source[1]))
    if not counts["kept"]:
        raise CaptionsError(f"want at least one caption from {source}, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    if images is not None:
        images.remove_unused(files)
        counts["images"] = len(files)
    return publish(scratch, root / OUT, "captions", recorded, counts)


def _clean_rows(
    batch: tuple[int, list[CaptionRow]],
    seen: set[str],
    params: CaptionsParams,
    images: CaptionImages | None,
    advance: Callable[[int], None],
) -> tuple[list[Caption], list[Drop]]:
    """The captions and drops of a batch of rows (index of the first row, rows). Only images of usable texts are opened.

    advance: called with the number of rows that are finished.
    """
    start, rows = batch
    reasons = [reason_to_drop(row.text, params) if isinstance(row, CaptionedImage) else None for row in rows]
    usable = [
        (row.text, row.file)
        for row, reason in zip(rows, reasons, strict=True)
        if isinstance(row, CaptionedImage) and reason is None
    ]
    advance(len(rows) - len(usable))
    checked: dict[tuple[str, Path], ImageReference | BadRow] = {}
    if usable:
        assert images is not None
        is_new = partial(_is_new, seen=seen)
        checked = dict(zip(usable, images.check(usable, is_new, advance), strict=True))
    results = []
    for index, (row, reason) in enumerate(zip(rows, reasons, strict=True), start=start):
        if isinstance(row, CaptionedImage):
            image = checked.get((row.text, row.file))
            if isinstance(image, BadRow):
                results.append(clean(image, index, seen, params, None))
            else:
                results.append(clean(row.text, index, seen, params, image, reason))
        else:
            results.append(clean(row, index, seen, params, None))
    captions = [result for result in results if isinstance(result, Caption)]
    return captions, [result for result in results if isinstance(result, Drop)]


def _is_new(text: str, image_hash: str, seen: Set[str]) -> bool:
    return duplicate_key(normalize(text), image_hash) not in seen


if __name__ == "__main__":
    stage_main("captions")
