"""Versions in a registry that commands do not use."""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.operations.health import doctor, registry_checks
from emuedit.operations.health.health_finding import Finding
from emuedit.operations.servers.background_process import ProcessRecord
from emuedit.process_identity import start_mark
from emuedit.tracking.registry import MODEL_NAME
from tests.operations.conftest import Answers

SEARCH = "/api/2.0/mlflow/model-versions/search"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def check() -> Finding:
    (finding,) = registry_checks.check_registries()
    return finding


def add_versions(database: Path, n: int) -> None:
    """Versions of the model, and as many of another one, in a database of MLflow."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for name in (MODEL_NAME, "other"):
            connection.execute("INSERT INTO registered_models (name) VALUES (?)", (name,))
            for number in range(1, n + 1):
                values = (name, number, "None")
                connection.execute("INSERT INTO model_versions (name, version, current_stage) VALUES (?, ?, ?)", values)


def run_server(folder: Path, url: str) -> None:
    (folder / ".emuedit").mkdir()
    ProcessRecord("mlflow", os.getpid(), start_mark(os.getpid()), url, time.time(), "").write(folder / ".emuedit")


def test_versions_beside_a_server_without_any_are_a_warning(
    workspace: Path, empty_store: Path, serve: Callable[[Answers], str]
) -> None:
    shutil.copy(empty_store, workspace / "mlflow.db")
    answers: Answers = {SEARCH: (200, {})}
    url = serve(answers)
    run_server(workspace, url)
    assert check().status == "pass", "nothing is hidden"
    assert registry_checks.describe_hidden(url) == ""
    add_versions(workspace / "mlflow.db", 2)
    finding = check()
    assert (finding.status, finding.detail) == ("warn", f"mlflow.db has 2 versions, and {url}, which commands use, none")
    assert "MLFLOW_TRACKING_URI=sqlite:///mlflow.db uv run emuedit models" in finding.fix
    assert registry_checks.describe_hidden(url) == f"{finding.detail}. {finding.fix}", "`up` says the same"
    answers[SEARCH] = (200, {"model_versions": [{"version": "1"}]})
    assert (check().status, check().detail) == ("pass", f"{url}, 1 versions; not used: mlflow.db, 2 versions")
    answers[SEARCH] = (500, {})
    assert check().status == "pass", "want no guess about a server that does not answer"
    assert registry_checks.check_registries in doctor.CHECKS


def test_stopped_servers_are_a_warning_unless_the_shell_names_a_store(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check().status == "pass"
    (workspace / ".emuedit").mkdir()
    (workspace / ".emuedit/ports.json").write_text("{}")
    assert check().status == "warn"
    assert "uv run emuedit up" in check().fix
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert check().status == "pass"


def test_servers_of_another_host_are_a_warning_that_names_it(workspace: Path) -> None:
    folder = workspace / ".emuedit"
    folder.mkdir()
    (folder / "ports.json").write_text("{}")
    ProcessRecord("mlflow", 1, "a mark", "http://127.0.0.1:9", time.time(), "", {}, "other-host", "a boot/pid:[1]").write(folder)
    finding = check()
    assert (finding.status, finding.detail.rpartition(" on ")[2]) == ("warn", "other-host")
    assert "emuedit down" in finding.fix


def test_a_file_that_is_not_mlflows_has_no_versions(workspace: Path, serve: Callable[[Answers], str]) -> None:
    (workspace / "mlflow.db").write_text("not a database, but a text that is longer than its header")
    run_server(workspace, serve({SEARCH: (200, {})}))
    assert check().status == "pass"
