"""Which MLflow the commands of a folder use, with records of `emuedit up` as it writes them."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.editor import package_folder
from emuedit.operations.servers import server_control
from emuedit.operations.servers.background_process import ProcessRecord
from emuedit.process_identity import start_mark
from emuedit.tracking import moved_store, serve_model, store_address
from flows import retrain

URL = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "")  # removed again after the test, also if a command sets it
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "")
    monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
    return tmp_path


def write_server(folder: Path, mark: str) -> None:
    """As after `emuedit up`, with this process as the server if `mark` is that of its start."""
    data = folder / ".emuedit"
    data.mkdir(exist_ok=True)
    (data / "ports.json").write_text("{}")
    ProcessRecord("mlflow", os.getpid(), mark, URL, time.time(), "").write(data)
    variables = {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false", "PREFECT_API_URL": "http://127.0.0.1:9/api", "KEY": "a b"}
    server_control.write_env(data, {"MLFLOW_TRACKING_URI": URL, **variables})


def test_the_server_of_the_folder_is_used_while_it_runs(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (store_address.tracking_uri(), store_address.has_store()) == ("sqlite:///mlflow.db", False)
    write_server(empty_folder, start_mark(os.getpid()))
    assert (store_address.tracking_uri(), store_address.has_store()) == (URL, True)
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "sqlite:///other.db")
    assert store_address.tracking_uri() == "sqlite:///other.db", "want the variable before all else"
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "")
    write_server(empty_folder, "an earlier process")
    assert (store_address.tracking_uri(), store_address.has_store()) == ("sqlite:///mlflow.db", False)
    assert store_address.is_server_stopped(empty_folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_record_is_no_server(content: str, empty_folder: Path) -> None:
    (empty_folder / ".emuedit").mkdir()
    (empty_folder / ".emuedit/mlflow.pid").write_text(content)
    assert store_address.server_variables() == {}


def test_a_command_keeps_its_choice_to_its_end_and_says_it(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_address.use_server() == ""
    write_server(empty_folder, start_mark(os.getpid()))
    assert store_address.use_server() == f"MLflow: {URL}, the server of `emuedit up` in this folder"
    assert os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] == "false", "want how artifacts are read, too"
    assert "KEY" not in os.environ
    write_server(empty_folder, "an earlier process")
    assert store_address.tracking_uri() == URL, "want the same store as before the server stopped"
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "")
    assert "mlflow.db, since the servers of `emuedit up` in this folder are stopped" in store_address.use_server()


@pytest.mark.parametrize("command", ["models", "ledger", "sync", "retrain"])
def test_commands_name_the_server_that_they_use_instead_of_the_file(
    command: str, empty_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_server(empty_folder, start_mark(os.getpid()))
    assert (retrain.main([]) if command == "retrain" else cli.main([command])) != 0, "nothing answers there"
    assert f"MLflow: {URL}, the server of `emuedit up`" in capfd.readouterr().err
    assert not (empty_folder / "mlflow.db").exists()


def test_the_paths_of_a_file_that_is_not_used_do_not_matter(empty_folder: Path, empty_store: Path) -> None:
    (empty_folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with contextlib.closing(sqlite3.connect(empty_folder / "mlflow.db")) as connection, connection:
        values = "(1, 'retrain', '/elsewhere/mlruns/1', 'active')"
        connection.execute(f"INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES {values}")
    with pytest.raises(moved_store.ServiceError, match=r"mlflow.db still points to /elsewhere"):
        moved_store.check(empty_folder)
    write_server(empty_folder, start_mark(os.getpid()))
    moved_store.check(empty_folder)


def test_a_stopped_server_is_named_by_those_who_open_the_champion(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old champion of mlflow.db was edited with and served, under the name of the champion."""
    (empty_folder / ".emuedit").mkdir(exist_ok=True)
    (empty_folder / ".emuedit/ports.json").write_text("{}")
    (empty_folder / "mlflow.db").touch()
    monkeypatch.chdir(empty_folder)
    monkeypatch.setattr("emuedit.tracking.service_errors.check", lambda: None)
    monkeypatch.setattr("emuedit.tracking.registry.version_at", lambda alias: None)
    assert package_folder.find_champion() is None
    assert capsys.readouterr().err == f"{store_address.STOPPED}\n"
    with pytest.raises(SystemExit, match=r"want the MLflow of `emuedit up` in this folder, got its servers stopped"):
        serve_model.main(["--host", "127.0.0.1", "--port", "0"])
