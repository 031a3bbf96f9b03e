"""Check that a folder is empty or can be written to, before the work whose results go there, and make folders for one user."""

import os
import stat
import tempfile
from pathlib import Path


class FolderError(ValueError):
    """Raised for a folder that cannot be written."""


def contents(folder: Path) -> list[Path]:
    """What is in a folder, without the `lost+found` that a new file system has at its root, which belongs to the system."""
    return [path for path in folder.iterdir() if path.name != "lost+found"]


def check_writable(folder: Path) -> None:
    """Raise FolderError unless `why_not_writable` returns an empty string."""
    if reason := why_not_writable(folder):
        raise FolderError(f"want a folder that can be written, got {reason}; name another, or change its permissions")


def make_private(folder: Path) -> bool:
    """Make a folder that only this user can open; False if there is another that others may have made or can open, or none can be
    made. Links are not followed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
    except OSError:
        return False
    return True


def make_private_temporary(name: str) -> Path:
    """A temporary folder that only this user can open: that of an earlier call, or a new one if others may have made that."""
    folder = Path(tempfile.gettempdir(), name)
    return folder if make_private(folder) else Path(tempfile.mkdtemp(prefix=f"{name}-"))


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
