"""Databases that are migrated once and copied for each test."""

import fcntl
import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

DatabaseOf = Callable[[str, Callable[[Path], None]], Path]
"""Takes a package and what creates its database at a path, and returns the path of the database."""


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database that processes may have open into a single file, whatever its journal is."""
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def cached_database(folder: Path, package: str, create: Callable[[Path], None]) -> Path:
    """The database of a package in `folder`; the first process that needs it creates it."""
    path = folder / f"{package}-{version(package)}.db"
    with (folder / f"{package}.lock").open("w") as lock, TemporaryDirectory(dir=folder) as draft:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            create(Path(draft, "draft.db"))
            copy_database(Path(draft, "draft.db"), Path(draft, path.name))
            Path(draft, path.name).replace(path)
    return path
