"""Check that files can be written to a folder, before the work whose results go there."""

import tempfile
from pathlib import Path


class FolderError(ValueError):
    """Raised for a folder that cannot be written."""


def check_writable(folder: Path) -> None:
    """Raise FolderError unless files can be written to a folder, or, if there is none, to the first existing folder above it.

    A file without a name is opened there for a moment; nothing stays.
    """
    place = folder.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        where = "" if place == folder.resolve() else f" (in {place})"
        raise FolderError(
            f"want a folder that can be written, got {folder}{where}: {error.strerror}; name another, or change its permissions"
        ) from error
