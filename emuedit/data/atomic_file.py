"""Atomic file writes, private files, and copies that share their bytes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, writer: object = "") -> Iterator[Path]:
    """Write a file atomically (temporary file, then rename). Yields the temporary path, a hidden file next to `path`.

    On an error in the block, such as a full disk, `path` is unchanged and the temporary file is removed; an OSError gets the name
    of `path`. A leftover of a killed process is overwritten; `writer` separates processes that may write the same path
    concurrently. A symbolic link is kept, and special files such as /dev/stdout are written directly.
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
        if error.filename is None and error.errno is not None:  # raised by `write`, which does not know the file name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_private(path: Path, content: str, writer: object = "") -> None:
    """Write a text file atomically that only its owner can read; `writer` as for `replacing`."""
    with replacing(path, writer) as partial:
        partial.touch(mode=0o600)
        partial.write_text(content, encoding="utf-8")


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Make a new file with the content of `source`: a hard link, or a copy where the file system has none between them.

    Of a symbolic link, the file that it leads to counts.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or no support for hard links
        shutil.copy2(source, target)
