"""Tables of an earlier MLflow are upgraded before its server starts; those of now cost nothing."""

import contextlib
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from emuedit.operations.servers import mlflow_tables, server_control, server_stack
from emuedit.operations.servers.server_control import ServersError
from emuedit.operations.servers.server_stack import StackLayout
from emuedit.tracking import table_upgrade


@pytest.fixture
def layout(tmp_path: Path) -> StackLayout:
    """A data folder without PostgreSQL."""
    return StackLayout(tmp_path, dict.fromkeys(server_stack.NAMES, 1), None)


def set_revision(layout: StackLayout, revision: str) -> None:
    with contextlib.closing(sqlite3.connect(layout.mlflow_file)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))


def upgrade(layout: StackLayout) -> list[str]:
    """Returns what was ended."""
    ended: list[str] = []
    environment = {**os.environ, table_upgrade.URI_ENV: f"sqlite:///{layout.mlflow_file}"}
    mlflow_tables.upgrade(layout, environment, lambda: ended.append("mlflow"), layout.folder)
    return ended


def test_the_newest_revision_is_that_of_mlflow_without_an_import_of_mlflow(layout: StackLayout) -> None:
    head, revisions = mlflow_tables.read_migrations()
    assert head in revisions
    assert len(revisions) > 50
    set_revision(layout, head)
    assert upgrade(layout) == []
    assert not (layout.folder / "backups").exists()


def test_an_empty_database_is_left_to_the_server(layout: StackLayout) -> None:
    assert upgrade(layout) == []
    assert not layout.mlflow_file.exists()
    sqlite3.connect(layout.mlflow_file).close()
    assert upgrade(layout) == []
    assert mlflow_tables.read_revision(layout) == ""


def test_tables_of_a_later_mlflow_are_an_error_and_nothing_is_ended(layout: StackLayout) -> None:
    set_revision(layout, "fffffffffff0")
    with pytest.raises(ServersError, match=r"want tables that MLflow [\d.]+ knows, got revision fffffffffff0 of a later MLflow"):
        mlflow_tables.upgrade(layout, {}, lambda: pytest.fail("want the server left alone"), layout.folder)


def test_without_a_database_the_command_says_what_it_wants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(table_upgrade.URI_ENV, raising=False)
    assert table_upgrade.main() == 2
    assert "want the URI of a database in MLFLOW_BACKEND_STORE_URI, got none" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tables_of_an_earlier_mlflow_are_copied_and_upgraded(layout: StackLayout, capsys: pytest.CaptureFixture[str]) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    url = f"sqlite:///{layout.mlflow_file}"
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(url)
    directory = ScriptDirectory.from_config(config)
    head = str(directory.get_current_head())
    before = str(directory.get_revision(head).down_revision)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    assert (mlflow_tables.read_revision(layout), mlflow_tables.read_migrations()[0]) == (before, head)

    assert upgrade(layout) == ["mlflow"]
    assert mlflow_tables.read_revision(layout) == head
    (copy,) = (layout.folder / "backups").iterdir()
    assert mlflow_tables.read_revision(StackLayout(copy.parent, {}, None)) == ""
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(before,)]
    assert f"upgrading tables of revision {before} to {head}; backup: {copy}" in capsys.readouterr().out
    assert upgrade(layout) == []


@pytest.mark.slow
def test_a_service_is_ended_for_the_upgrade_and_can_be_started_again(tmp_path: Path) -> None:
    from tests.operations.servers.test_servers import http_service

    service = http_service("mlflow")
    lines: list[str] = []
    with server_control.Starter(tmp_path, tmp_path, lines.append) as starter:
        starter.end(service)
        starter.start([service])
        starter.end(service)
        assert lines[-1] == "mlflow: stopped for an upgrade"
        assert server_control.running_names(tmp_path) == set()
        starter.start([service])
    assert server_control.end_all(tmp_path, [service], print) == 1
    assert sys.executable in service.command.arguments
