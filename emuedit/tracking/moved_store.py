"""`mlflow.db` of a workspace that was moved or copied, in which MLflow stored absolute paths of artifacts.

A copy would read and write artifacts in the original folder. So nothing is written until `emuedit sync --moved` has updated the
paths in the database.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from emuedit.tracking.service_errors import ServiceError
from emuedit.tracking.store_address import DATABASE, TRACKING_URI_ENV, open_read_only, server_variables

ARTIFACTS = "mlruns"
_COLUMNS = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
"""Tables and columns of MLflow 3 with paths of artifacts."""


def old_place(root: Path) -> Path | None:
    """The folder to which the workspace's own `mlflow.db` points, if it is not `root`; None if a server is used."""
    database = root / DATABASE
    if os.environ.get(TRACKING_URI_ENV) or not database.is_file() or server_variables(root):
        return None
    try:
        with open_read_only(database, timeout_s=5.0) as connection:
            rows = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id != 0").fetchall()
    except sqlite3.Error:  # not MLflow's, or damaged: `service_errors.check` reports it
        return None
    for (location,) in rows:
        path = Path(str(location).removeprefix("file://"))
        if path.is_absolute() and path.parent.name == ARTIFACTS and path.parent.parent.resolve() != root.resolve():
            return path.parent.parent
    return None


def check(root: Path) -> None:
    """Raise ServiceError for a workspace whose database points to another folder."""
    if (place := old_place(root)) is not None:
        raise ServiceError(f"{DATABASE} still points to {place}, where artifacts would be written; run `emuedit sync --moved`")


def adopt(root: Path) -> int:
    """Update the paths in the database to `root`; returns the number of changed paths. `mlflow.db.before-move` is a backup."""
    place = old_place(root)
    if place is None:
        return 0
    n_changed = 0
    with contextlib.closing(sqlite3.connect(root / DATABASE)) as connection:
        with contextlib.closing(sqlite3.connect(root / f"{DATABASE}.before-move")) as copy:
            connection.backup(copy)
        with connection:  # all or nothing
            for table, column in _COLUMNS:
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                for prefix in ("", "file://") if column in columns else ():
                    old, new = f"{prefix}{place}/{ARTIFACTS}/", f"{prefix}{root.resolve()}/{ARTIFACTS}/"
                    statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
                    n_changed += connection.execute(statement, (new, len(old) + 1, len(old), old)).rowcount
    return n_changed
