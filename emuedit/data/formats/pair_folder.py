"""Your own pairs: image files before and after an edit, in a folder that `example_folder` reads, as for `emuedit learn`.

Pairs with the same image before the edit, by content, are held out together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from emuedit.data.dependencies import hash_file
from emuedit.data.example_folder import ExampleEdit
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
_ROWS_PER_BATCH = 32  # photographs have several MB
_STORED_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema([(name, _STORED_IMAGE if column.kind == "image" else pa.string()) for name, column in FORMAT.columns.items()])


def read_batches(examples: Sequence[ExampleEdit]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(index of the first row, rows) with the columns of FORMAT."""
    for start in range(0, len(examples), _ROWS_PER_BATCH):
        rows = [_row(example) for example in examples[start : start + _ROWS_PER_BATCH]]
        yield start, pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _row(example: ExampleEdit) -> dict[str, object]:
    return {
        "image": example.before.name,
        "image_hash": hash_file(example.before),
        "instruction": example.instruction,
        "input_caption": example.source_caption,
        "output_caption": example.target_caption,
        "before": {"bytes": _read(example.before), "path": None},
        "after": {"bytes": _read(example.after), "path": None},
    }


def _read(file: Path) -> bytes:
    """Its bytes; empty for an unreadable file, whose row is then dropped."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
