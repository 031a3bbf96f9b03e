"""Write a file as a whole or not at all: beside its place, then renamed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, writer: object = "") -> Iterator[Path]:
    """The path of a hidden file beside `path`, with its suffix, to write to. It takes the place of `path` when the block ends.

    An error in the block, such as that of a full disk, leaves `path` as it was and removes the hidden file. One that a killed
    process left is written over by the next; `writer` tells apart processes that may write the same path at the same time.
    """
    partial = path.with_name(f".{path.stem}.{writer}.part{path.suffix}".replace("..", "."))
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
