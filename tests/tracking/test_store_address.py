"""Which MLflow the commands of a folder use, with records of `emuedit up` as it writes them."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.editor import package_folder
from emuedit.operations.health import registry_checks, running_runs
from emuedit.operations.servers import server_control
from emuedit.operations.servers.background_process import ProcessRecord
from emuedit.process_identity import start_mark
from emuedit.tracking import mlflow_client, moved_store, serve_model, store_address
from emuedit.tracking.registry import MODEL_NAME
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


def write_moved_database(folder: Path, empty_store: Path) -> None:
    """`mlflow.db` of a workspace that was moved from /elsewhere."""
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        values = "(1, 'retrain', '/elsewhere/mlruns/1', 'active')"
        connection.execute(f"INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES {values}")


@pytest.mark.parametrize("name", ["a #2", "50%25", "what?", "b\u00fcro 100%"])
def test_a_database_is_read_in_a_folder_of_any_name(name: str, empty_folder: Path, empty_store: Path) -> None:
    """In a URI of SQLite, `#`, `%` and `?` have a meaning."""
    (folder := empty_folder / name).mkdir()
    write_moved_database(folder, empty_store)
    assert moved_store.old_place(folder) == Path("/elsewhere")
    database = folder / "mlflow.db"
    assert running_runs.runs_of_file(database) == []
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"INSERT INTO registered_models (name) VALUES ('{MODEL_NAME}')")
        connection.execute(f"INSERT INTO model_versions (name, version, current_stage) VALUES ('{MODEL_NAME}', 1, 'None')")
    assert registry_checks._count_in_file(database) == 1


def test_a_database_that_does_not_exist_is_not_created(empty_folder: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        store_address.open_read_only(empty_folder / "mlflow.db", timeout_s=1.0)
    assert not (empty_folder / "mlflow.db").exists()


@pytest.mark.parametrize("value", [None, "", "sqlite:///other.db"])
def test_what_mlflow_writes_to_the_variable_is_no_choice_of_the_user(
    value: str | None, empty_folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a download, no moved workspace was noticed, and a stage without a flow logged to `mlflow.db`."""
    from mlflow.tracking._tracking_service import utils

    monkeypatch.setattr(utils, "_tracking_uri", None)
    write_moved_database(empty_folder, empty_store)
    if value is None:
        monkeypatch.delenv(store_address.TRACKING_URI_ENV)
    else:
        monkeypatch.setenv(store_address.TRACKING_URI_ENV, value)
    assert mlflow_client.fluent_api().get_tracking_uri() == (value or "sqlite:///mlflow.db")
    assert os.environ.get(store_address.TRACKING_URI_ENV) == value
    assert (moved_store.old_place(empty_folder) is None) == bool(value)


def test_the_paths_of_a_file_that_is_not_used_do_not_matter(empty_folder: Path, empty_store: Path) -> None:
    write_moved_database(empty_folder, empty_store)
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
