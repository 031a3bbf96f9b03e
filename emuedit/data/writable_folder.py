"""Check that files can be written to a folder, before the work whose results go there."""

import tempfile
from pathlib import Path


class FolderError(ValueError):
    """Raised for a folder that cannot be written."""


def check_writable(folder: Path) -> None:
    """Raise FolderError unless `why_not_writable` returns an empty string."""
    if reason := why_not_writable(folder):
        raise FolderError(f"want a folder that can be written, got {reason}; name another, or change its permissions")


def why_not_writable(folder: Path) -> str:
    """Why no file can be written to a folder, or, if there is none, to the first existing folder above it; empty if it can.

    A file without a name is opened there for a moment; nothing stays.
    """
    place = folder.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        where = "" if place == folder.resolve() else f" (in {place})"
        return f"{folder}{where}: {error.strerror or error}"
