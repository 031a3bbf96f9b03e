"""Your own pairs: image files before and after an edit, in a folder that `example_folder` reads, as for `emuedit learn`.

Pairs with the same image before the edit, by content, are held out together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from emuedit.data.example_folder import ExampleEdit
from emuedit.data.file_hashes import HashMemory, hash_all
from emuedit.data.formats.pair_format import NOTE, Column, PairFormat

FORMAT = PairFormat(
    name="folder",
    source="images of a folder",
    licence="not stated",
    family="image_hash",
    columns={
        "image": Column("text", NOTE),
        "image_hash": Column("text", NOTE),
        "instruction": Column("text", "instruction"),
        "input_caption": Column("text", "source_caption"),
        "output_caption": Column("text", "target_caption"),
        "before": Column("image", "source"),
        "after": Column("image", "target"),
    },
)
_ROWS_PER_BATCH = 32  # in memory at a time; photographs have several MB
BYTES_PER_SHARD = 2**28
"""Largest sum of the sizes of the image files of a shard, in bytes, if images keep their size; as PNG, they have several times as
many. Ours."""
_STORED_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema([(name, _STORED_IMAGE if column.kind == "image" else pa.string()) for name, column in FORMAT.columns.items()])


def split_into_shards(examples: Sequence[ExampleEdit], max_rows: int, max_bytes: float) -> Iterator[tuple[int, int]]:
    """(start, end) of the examples of each shard: up to `max_rows`, and up to `max_bytes` of image files if there are several."""
    start, n_bytes = 0, 0
    for row, example in enumerate(examples):
        size = _size_of(example.before) + _size_of(example.after)
        if row > start and (row - start == max_rows or n_bytes + size > max_bytes):
            yield start, row
            start, n_bytes = row, 0
        n_bytes += size
    if examples:
        yield start, len(examples)


def read_rows(examples: Sequence[ExampleEdit], memory: HashMemory | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of examples with the columns of FORMAT, a few at a time. memory: of the hashes of their files."""
    for start in range(0, len(examples), _ROWS_PER_BATCH):
        batch = examples[start : start + _ROWS_PER_BATCH]
        hashes = hash_all([example.before for example in batch], memory=memory)
        rows = [_row(example, content) for example, content in zip(batch, hashes, strict=True)]
        yield pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _row(example: ExampleEdit, image_hash: str) -> dict[str, object]:
    return {
        "image": example.before.name,
        "image_hash": image_hash,
        "instruction": example.instruction,
        "input_caption": example.source_caption,
        "output_caption": example.target_caption,
        "before": {"bytes": _read(example.before), "path": None},
        "after": {"bytes": _read(example.after), "path": None},
    }


def _size_of(file: Path) -> int:
    """In bytes; 0 for an unreadable file."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read(file: Path) -> bytes:
    """Its bytes; empty for an unreadable file, whose row is then dropped."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
