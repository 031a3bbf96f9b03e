"""Which MLflow is used: MLFLOW_TRACKING_URI, else the running server of `emuedit up` in the working folder, else `mlflow.db`."""

import contextlib
import json
import os
import shlex
import sqlite3
from pathlib import Path

from emuedit.process_identity import start_mark

TRACKING_URI_ENV = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
"""The database in the working folder that is used without a server."""
STOPPED = f"MLflow: {DATABASE}, since the servers of `emuedit up` in this folder are stopped"
_SERVERS = Path(".emuedit")  # the default data folder of `emuedit up`
_VARIABLES = "MLFLOW_"


def tracking_uri() -> str:
    """URI of the MLflow that is used now in the working folder."""
    return os.environ.get(TRACKING_URI_ENV) or server_variables().get(TRACKING_URI_ENV) or f"sqlite:///{DATABASE}"


def has_store() -> bool:
    """Whether there is an MLflow to ask: opening a database that does not exist would create it."""
    return bool(os.environ.get(TRACKING_URI_ENV) or server_variables()) or Path(DATABASE).exists()


def server_variables(root: Path = Path()) -> dict[str, str]:
    """Variables of a shell for the server that `emuedit up` started in `root`: its URI, and how to get artifacts from it.

    Empty if the server does not run on this machine.
    """
    try:
        record = json.loads((root / _SERVERS / "mlflow.pid").read_text(encoding="utf-8"))
        if not start_mark(record["pid"]) == record["start_mark"] != "":
            return {}
        file = root / _SERVERS / "env"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []  # the first `up` writes it at its end
        words = [word for line in lines for word in shlex.split(line) if word.startswith(_VARIABLES)]
        return {**dict(word.split("=", 1) for word in words), TRACKING_URI_ENV: str(record["url"])}
    except (OSError, ValueError, KeyError, TypeError):  # no server, a folder of another user, or a damaged record
        return {}


def open_read_only(database: Path, timeout_s: float) -> contextlib.closing[sqlite3.Connection]:
    """A connection to a database file of MLflow for a `with` block. Raises sqlite3.Error if there is no such file."""
    return contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=timeout_s))


def is_server_stopped(root: Path) -> bool:
    """Whether `emuedit up` was called in `root`, and its MLflow does not run now."""
    return (root / _SERVERS / "ports.json").exists() and not server_variables(root)


def use_server() -> str:
    """Have this process and its children use the running server to their end, unless MLFLOW_TRACKING_URI is set.

    Returns a line to print if the choice depends on `emuedit up`; empty otherwise.
    """
    if os.environ.get(TRACKING_URI_ENV):
        return ""
    if variables := server_variables():
        os.environ.update({name: value for name, value in variables.items() if name not in os.environ})
        os.environ[TRACKING_URI_ENV] = variables[TRACKING_URI_ENV]  # it may be set and empty
        return f"MLflow: {variables[TRACKING_URI_ENV]}, the server of `emuedit up` in this folder"
    return STOPPED if is_server_stopped(Path()) else ""
