"""Check that the registry in use is the one with the versions: `mlflow.db` in the working folder, or a server beside it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from emuedit.operations.health.health_finding import Finding
from emuedit.operations.servers.background_process import read_record
from emuedit.operations.servers.http_probe import ask
from emuedit.tracking import store_address
from emuedit.tracking.registry import MODEL_NAME
from emuedit.tracking.service_errors import hide_password

_ANSWER_S = 10.0
_NAME = "registries"
_SERVERS = Path(".emuedit")  # the default data folder of `emuedit up`
_MOVE = (
    f"`uv run retrain` registers the trained editor of this folder again; MLflow cannot move the others. "
    f"{store_address.TRACKING_URI_ENV}=sqlite:///{store_address.DATABASE} uv run emuedit models shows them"
)


def check_registries() -> Iterator[Finding]:
    """No versions are hidden in a registry other than the one that commands use in this folder."""
    file = Path(store_address.DATABASE)
    uri = store_address.tracking_uri()
    if uri.startswith("http"):
        yield _compare(file, uri)
    elif (
        not os.environ.get(store_address.TRACKING_URI_ENV) and (record := read_record(_SERVERS, "mlflow")) and record.is_elsewhere
    ):
        detail = f"commands use {file}, since the servers of `emuedit up` in this folder were started on {record.place}"
        fix = f"work there, or run `emuedit down` there and `emuedit up` here; if it is gone, delete {_SERVERS}/*.pid"
        yield Finding(_NAME, "warn", detail, fix)
    elif not os.environ.get(store_address.TRACKING_URI_ENV) and store_address.is_server_stopped(Path()):
        detail = f"commands use {file}, since the servers of `emuedit up` in this folder are stopped"
        yield Finding(_NAME, "warn", detail, "uv run emuedit up; without it, versions get registered in two places")
    else:
        yield Finding(_NAME, "pass", "one")


def describe_hidden(uri: str) -> str:
    """A line on the versions in `mlflow.db` of the working folder, if there are some and the server at `uri` has none."""
    finding = _compare(Path(store_address.DATABASE), uri)
    return "" if finding.status == "pass" else f"{finding.detail}. {finding.fix}"


def _compare(file: Path, uri: str) -> Finding:
    n_here = _count_in_file(file)
    if not n_here:
        return Finding(_NAME, "pass", f"one: {hide_password(uri)}")
    n_server = _count_on_server(uri)
    if n_server is None:
        return Finding(_NAME, "pass", f"{file}, {n_here} versions; unknown for {hide_password(uri)}, which does not answer")
    if n_server:
        return Finding(_NAME, "pass", f"{hide_password(uri)}, {n_server} versions; not used: {file}, {n_here} versions")
    return Finding(_NAME, "warn", f"{file} has {n_here} versions, and {hide_password(uri)}, which commands use, none", _MOVE)


def _count_in_file(file: Path) -> int:
    """Versions in a database file, opened read-only; 0 for a file that is not MLflow's."""
    if not file.is_file():
        return 0
    query = "SELECT COUNT(*) FROM model_versions WHERE name = ? AND current_stage != 'Deleted_Internal'"  # as MLflow deletes
    with contextlib.suppress(sqlite3.Error), store_address.open_read_only(file, timeout_s=2.0) as connection:
        return int(connection.execute(query, (MODEL_NAME,)).fetchone()[0])
    return 0


def mlflow_account() -> str:
    """`name:password` of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; empty without a name."""
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    return f"{name}:{password}" if name else ""


def _count_on_server(uri: str) -> int | None:
    """Versions on a server, of at most 1000; None if it does not answer, which the check of MLflow reports."""
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/model-versions/search?filter=name%3D%27{MODEL_NAME}%27&max_results=1000"
    answer = ask(url, _ANSWER_S, account=mlflow_account())
    return len(answer.json().get("model_versions", [])) if answer.is_success else None


CHECKS = (check_registries,)
