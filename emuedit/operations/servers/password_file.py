"""Random passwords of the servers of `emuedit up`, in its data folder."""

import secrets
from pathlib import Path

from emuedit.data.atomic_file import write_private


def read_password(path: Path) -> str:
    """The password from a file that only its owner can read; created if missing."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24) + "\n")
    return path.read_text(encoding="utf-8").strip()
