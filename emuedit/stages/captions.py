"""Station `captions`: sentences from anywhere -> clean, distinct captions in shards. What is left out is kept with its reason.

In: the world's caption source. Out: `data/captions/shard-*.parquet` of Caption, `dropped-*.parquet` of Drop, `summary.json`.
"""

from collections import Counter
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from emuedit import config
from emuedit.data import caption_sources, language
from emuedit.data.publish import Summary, fingerprint, publish, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.data.shards import read_shard, write_shard

OUT = "data/captions"


class CaptionsError(ValueError):
    """Raised for a caption source that is not there or holds no caption."""


class CaptionsParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world; only its `captions` matters here."""
    split: str = Field(min_length=1)
    """Part of the source to draw from; understood by Python files and datasets."""
    column: str = Field(min_length=1)
    """Column or key that holds the caption in .csv, .jsonl and .parquet files and in datasets."""
    n_rows: int = Field(ge=1)
    """Rows to read from the source, at most."""
    rows_per_shard: int = Field(ge=1)
    """Rows read for one shard: the unit of work that a restart does not repeat."""
    min_words: int = Field(ge=1)
    """Captions with fewer words are dropped."""
    max_words: int = Field(ge=1)
    """Captions with more words are dropped."""
    languages: tuple[str, ...]
    """Languages to keep, as ISO 639-1 codes; none: all of them."""
    min_language: float = Field(ge=0, le=1)
    """Captions that are less probably in one of these languages are dropped."""


def clean(text: str | None, index: int, seen: set[str], params: CaptionsParams) -> Caption | Drop:
    """The heart: one row of the source -> a Caption with single spaces, or a Drop with its reason.

    `seen` holds the captions met so far, case folded and without a final stop; this one is added when it is kept.
    """
    source = params.world.captions
    words = (text or "").split()
    tidy = " ".join(words)
    key = tidy.casefold().rstrip(" .!")
    if not key:
        return Drop(text or "", "empty", source, index)
    if len(words) < params.min_words:
        return Drop(tidy, "too_short", source, index)
    if len(words) > params.max_words:
        return Drop(tidy, "too_long", source, index)
    if key in seen:
        return Drop(tidy, "duplicate", source, index)
    if params.languages and language.probability(tidy, params.languages) < params.min_language:
        return Drop(tidy, "other_language", source, index)
    seen.add(key)
    return Caption(tidy, source, index)


def run(params: CaptionsParams, root: Path) -> Summary:
    """Read the source shard by shard, skip shards that an earlier run left in scratch, publish to `data/captions`."""
    source = root / params.world.captions
    if not source.exists():
        raise CaptionsError(f"want the caption source of world {params.world.name!r}, got none at {source.resolve()}")
    knobs = params.model_dump(mode="json", exclude={"world"}) | {"source": params.world.captions}
    behind = source.parent.glob("*.py") if source.suffix == ".py" else ()  # what a Python source may import beside it
    scratch = scratch_folder(
        root, "captions", fingerprint(knobs, source, *sorted(behind), __file__, caption_sources.__file__, language.__file__)
    )
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    pieces = caption_sources.read_batches(
        source, params.world.captions, params.split, params.column, params.n_rows, params.rows_per_shard
    )
    with tqdm(total=params.n_rows, unit="row", desc="captions") as bar:
        for number, (start, rows) in enumerate(pieces):
            kept_path, drop_path = scratch / f"shard-{number:05d}.parquet", scratch / f"dropped-{number:05d}.parquet"
            if kept_path.exists():  # written after its drops, so both are there
                kept, dropped = read_shard(kept_path, Caption), read_shard(drop_path, Drop)
                seen.update(one.text.casefold().rstrip(" .!") for one in kept)
            else:
                cleaned = [clean(text, start + i, seen, params) for i, text in enumerate(rows)]
                kept = [one for one in cleaned if isinstance(one, Caption)]
                dropped = [one for one in cleaned if isinstance(one, Drop)]
                write_shard(drop_path, dropped, Drop)
                write_shard(kept_path, kept, Caption)
            counts["kept"] += len(kept)
            counts.update(f"dropped_{one.reason}" for one in dropped)
            bar.update(len(rows))
    if not counts["kept"]:
        raise CaptionsError(f"want at least one caption from {source}, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    return publish(scratch, root / OUT, "captions", knobs, counts)


if __name__ == "__main__":
    run(config.load(CaptionsParams, "captions"), Path())
