"""Station `captions`: sentences from anywhere -> clean, distinct captions in shards. What is left out is kept with its reason.

In: the world's caption file. Out: `data/captions/shard-*.parquet` of Caption, `dropped-*.parquet` of Drop, `summary.json`.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import Field
from tqdm import tqdm

from emuedit import params as house
from emuedit.records import Caption, Drop, Summary, fingerprint, publish, read_shard, scratch_folder, write_shard

OUT = "data/captions"

Source = Callable[[str, int, int], list[str]]


class CaptionsError(ValueError):
    """Raised for a caption source that cannot be read."""


class Params(house.Params):
    """Knobs of the station."""

    world: house.World
    """The world; only its `captions` matters here."""
    split: str = Field(min_length=1)
    """Part of the world to draw from; understood by sources that are Python files."""
    column: str = Field(min_length=1)
    """Column or key that holds the caption in .csv, .jsonl and .parquet files."""
    n_rows: int = Field(ge=1)
    """Rows to read from the source, at most."""
    rows_per_shard: int = Field(ge=1)
    """Rows read for one shard: the unit of work that a restart does not repeat."""
    min_words: int = Field(ge=1)
    """Captions with fewer words are dropped."""
    max_words: int = Field(ge=1)
    """Captions with more words are dropped."""


def clean(text: str | None, index: int, seen: set[str], params: Params) -> Caption | Drop:
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
    seen.add(key)
    return Caption(tidy, source, index)


def run(params: Params, root: Path) -> Summary:
    """Read the source shard by shard, skip shards that an earlier run left in scratch, publish to `data/captions`."""
    source = root / params.world.captions
    if not source.exists():
        raise CaptionsError(f"want the caption file of world {params.world.name!r}, got none at {source.resolve()}")
    knobs = params.model_dump(mode="json", exclude={"world"}) | {"source": params.world.captions}
    behind = source.parent.glob("*.py") if source.suffix == ".py" else ()  # what a Python source may import beside it
    scratch = scratch_folder(root, "captions", fingerprint(knobs, source, *sorted(behind), __file__))
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    with tqdm(total=params.n_rows, unit="row", desc="captions") as bar:
        for number, (start, rows) in enumerate(_chunks(source, params)):
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


def _chunks(source: Path, params: Params) -> Iterator[tuple[int, list[str | None]]]:
    """(index of the first row, rows) of at most `rows_per_shard` rows each, `n_rows` in all."""
    starts = range(0, params.n_rows, params.rows_per_shard)
    if source.suffix == ".py":
        draw: Source = house.imported(params.world.captions, "captions")
        for start in starts:
            yield start, list(draw(params.split, start, min(params.rows_per_shard, params.n_rows - start)))
        return
    rows = islice(_rows(source, params.column), params.n_rows)
    for start in starts:
        if not (chunk := list(islice(rows, params.rows_per_shard))):
            return
        yield start, chunk


def _rows(source: Path, column: str) -> Iterator[str | None]:
    """Captions of a text file (one a line) or of a column of a table, one at a time."""
    if source.suffix == ".parquet":
        names = pq.ParquetFile(source).schema_arrow.names
        if column not in names:
            raise CaptionsError(f"want column {column!r} in {source}, got {names}; set captions.column in params.yaml")
        for batch in pq.ParquetFile(source).iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
        return
    if source.suffix not in (".txt", ".csv", ".jsonl"):
        raise CaptionsError(f"want a caption file .txt, .csv, .jsonl, .parquet or .py; got {source}")
    with source.open(encoding="utf-8", newline="" if source.suffix == ".csv" else None) as lines:
        if source.suffix == ".txt":
            yield from lines
            return
        table = csv.DictReader(lines) if source.suffix == ".csv" else map(json.loads, filter(str.strip, lines))
        for number, row in enumerate(table, start=1):
            if column not in row:
                got = f"{sorted(row)} in row {number}"
                raise CaptionsError(f"want key {column!r} in {source}, got {got}; set captions.column in params.yaml")
            yield row[column]


if __name__ == "__main__":
    run(house.load(Params, "captions"), Path())
