"""The project's folder in the user's cache folder, and the ages of what is in a cache."""

import contextlib
import os
import time
from pathlib import Path


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/emuedit` or `~/.cache/emuedit`, which may not exist; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emuedit"
    except RuntimeError:  # no HOME, and no entry in the user database
        return None


def entry_ages(folder: Path) -> list[tuple[float, Path]]:
    """Seconds since the last change of each entry of a folder, the latest first; without those deleted in the meantime."""
    ages: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may delete at the same time
            ages.append((time.time() - path.stat().st_mtime, path))
    return sorted(ages)
