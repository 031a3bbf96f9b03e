"""Write a file as a whole or not at all: beside its place, then renamed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, writer: object = "") -> Iterator[Path]:
    """The path of a hidden file beside `path`, with its suffix, to write to. It takes the place of `path` when the block ends.

    An error in the block, such as that of a full disk, leaves `path` as it was and removes the hidden file; an OSError then
    names `path`. A hidden file that a killed process left is written over by the next; `writer` tells apart processes that may
    write the same path at the same time. A link stays one, and what is no file, such as /dev/stdout, is written itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    mark = f".{writer}.part" if writer != "" else ".part"
    partial = target.with_name(f".{target.stem}{mark}{target.suffix}")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename is None and error.errno is not None:  # of `write`, which does not know the name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
