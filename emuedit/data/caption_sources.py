"""Texts from anywhere, a piece at a time: a file of lines or rows, a dataset's folder, a dataset on the hub, a Python file.

Each is a path below the root, so that DVC can hash it. A dataset on the hub is named by a .yaml file, with its commit.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from emuedit import config

_TABLES = (".csv", ".jsonl", ".parquet")

Source = Callable[[str, int, int], list[str]]


class CaptionSourceError(ValueError):
    """Raised for a source that cannot be read."""


class HubDataset(config.Params):
    """What a .yaml source holds under `captions`: a dataset on the hub, streamed and never stored whole."""

    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """owner/name."""
    config: str | None
    """One of its configurations; null where it has only one."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Its commit: the same file then means the same texts for ever."""


def read_batches(
    source: Path, reference: str, split: str, column: str, n_rows: int, size: int
) -> Iterator[tuple[int, list[str | None]]]:
    """(index of the first row, rows) of at most `size` rows each, `n_rows` in all.

    `reference` is `source` as the world names it, for a Python file; `split` is for those, and for datasets.
    Raises CaptionSourceError, and ParamsError for a Python or .yaml file that does not hold what it should.
    """
    starts = range(0, n_rows, size)
    if source.suffix == ".py":
        draw: Source = config.import_function(reference, "captions")
        for start in starts:
            yield start, list(draw(split, start, min(size, n_rows - start)))
        return
    rows = islice(_rows(source, split, column), n_rows)
    for start in starts:
        if not (piece := list(islice(rows, size))):
            return
        yield start, piece


def _rows(source: Path, split: str, column: str) -> Iterator[str | None]:
    """The texts of a text file (one a line), or of one column of all others."""
    if source.suffix == ".txt":
        with source.open(encoding="utf-8") as lines:
            yield from lines
        return
    for number, row in enumerate(_table(source, split, column), start=1):
        if column not in row:
            got = f"{sorted(row)} in row {number}"
            raise CaptionSourceError(f"want key {column!r} in {source}, got {got}; set captions.column in params.yaml")
        if not isinstance(row[column], str | None):
            raise CaptionSourceError(
                f"want text in {column!r} of {source}, got {str(row[column])[:80]!r} in row {number}; name another"
            )
        yield row[column]


def _table(source: Path, split: str, column: str) -> Iterator[dict[str, Any]]:
    """Rows by column; of Parquet files and datasets only the one that is asked for, where it is there."""
    if source.is_dir() or source.suffix == ".yaml":
        yield from _dataset(source, split, column)
    elif source.suffix == ".parquet":
        names = pq.ParquetFile(source).schema_arrow.names
        for batch in pq.ParquetFile(source).iter_batches(columns=[column] if column in names else names):
            yield from batch.to_pylist()
    elif source.suffix == ".csv":
        with source.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines)
    elif source.suffix == ".jsonl":
        with source.open(encoding="utf-8") as lines:
            yield from map(json.loads, filter(str.strip, lines))
    else:
        kinds = f".txt, {', '.join(_TABLES)}, .py or .yaml, or a dataset's folder"
        raise CaptionSourceError(f"want a caption source {kinds}; got {source}")


def _dataset(source: Path, split: str, column: str) -> Iterator[dict[str, Any]]:
    """Rows of a dataset in any form that `datasets` reads, streamed; one saved by `save_to_disk` is mapped."""
    import datasets

    saved = [folder for folder in (source / split, source) if (folder / "state.json").is_file()]  # alone, it has no splits
    if source.suffix == ".yaml":
        hub = config.load(HubDataset, "captions", source)
        given: dict[str, Any] = {"path": hub.dataset, "name": hub.config, "revision": hub.revision}
    else:
        given = {"path": str(source)}
    try:
        rows = datasets.load_from_disk(saved[0]) if saved else datasets.load_dataset(**given, split=split, streaming=True)
    except (ValueError, OSError) as error:  # `datasets` raises these two for: no such split, configuration, dataset; no network
        raise CaptionSourceError(f"want the split {split!r} of the dataset {given['path']}, got none: {error}") from error
    names = rows.column_names
    yield from rows.select_columns([column]) if names and column in names else rows
