"""The project's folder in the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/emuedit` or `~/.cache/emuedit`, which may not exist; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emuedit"
    except RuntimeError:  # no HOME, and no entry in the user database
        return None
