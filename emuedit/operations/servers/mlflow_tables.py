"""Upgrade MLflow's tables to the installed version, whose server does not start with tables of an earlier one.

Importing MLflow takes six seconds, so its migrations are read as text, and it is called only if there is something to do.
"""

import contextlib
import importlib.util
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from emuedit.operations.servers import server_control
from emuedit.operations.servers.server_control import ServersError
from emuedit.operations.servers.server_stack import StackLayout

_UPGRADE = ["-m", "emuedit.tracking.table_upgrade"]
_MIGRATIONS = "store/db_migrations/versions"
_REVISION = re.compile(r"""^(revision|down_revision) = ["'](\w+)["']""", re.MULTILINE)
_HAS_TABLE = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'alembic_version'"
_READ_REVISION = "SELECT version_num FROM alembic_version"


def upgrade(layout: StackLayout, environment: Mapping[str, str], end_server: Callable[[], None], cwd: Path) -> None:
    """Upgrade tables of an earlier MLflow, after a backup of the database to `<data folder>/backups`. Empty databases stay empty.

    environment: of MLflow's server. `end_server` stops a server that uses the tables. Raises ServersError, also for tables of a
    later MLflow, and PostgresError.
    """
    present, (head, revisions) = read_revision(layout), read_migrations()
    if present in ("", head):  # MLflow's server creates the tables of an empty database
        return
    if head and present not in revisions:
        raise ServersError(
            f"want tables that MLflow {version('mlflow')} knows, got revision {present} of a later MLflow; install that "
            f"version again (uv sync), or restore the database from {layout.folder / 'backups'}"
        )
    end_server()
    copy = _back_up(layout, present)
    print(f"mlflow: upgrading tables of revision {present} to {head or 'the latest'}; backup: {copy}", flush=True)
    log = layout.folder / "logs" / "mlflow-upgrade.log"
    log.parent.mkdir(exist_ok=True)
    server_control.run_setup(_UPGRADE, dict(environment), cwd, log)


def read_revision(layout: StackLayout) -> str:
    """The revision of the tables; empty if there are none."""
    if layout.postgres:
        if layout.postgres.ask("mlflow", _HAS_TABLE) == "0":
            return ""
        return layout.postgres.ask("mlflow", _READ_REVISION)
    if not layout.mlflow_file.exists():
        return ""
    with contextlib.closing(sqlite3.connect(layout.mlflow_file)) as connection:
        try:
            row = connection.execute(_READ_REVISION).fetchone()
        except sqlite3.OperationalError:  # no such table
            return ""
    return str(row[0]) if row else ""


def read_migrations() -> tuple[str, set[str]]:
    """The revision of the installed MLflow's tables, and all that it can upgrade; the former is empty if ambiguous."""
    specification = importlib.util.find_spec("mlflow")
    folders = [Path(folder, _MIGRATIONS) for folder in (specification.submodule_search_locations or ())] if specification else []
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in folder.glob("*.py")]
    entries = [match for text in texts for match in _REVISION.findall(text)]
    revisions = {revision for kind, revision in entries if kind == "revision"}
    heads = revisions - {revision for kind, revision in entries if kind == "down_revision"}
    return (heads.pop() if len(heads) == 1 else ""), revisions


def _back_up(layout: StackLayout, revision: str) -> Path:
    """Back up MLflow's database; returns an SQL file for `psql`, or a copy of the SQLite file."""
    folder = layout.folder / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"mlflow-{revision}-{time.strftime('%Y%m%d-%H%M%S')}"
    if layout.postgres:
        path = folder / f"{name}.sql"
        layout.postgres.dump("mlflow", path)
        return path
    path = folder / f"{name}.db"
    with contextlib.closing(sqlite3.connect(layout.mlflow_file)) as connection:
        connection.execute("VACUUM INTO ?", (str(path),))
    return path
