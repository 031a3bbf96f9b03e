"""Which binaries serve a cluster: those of the version that made it, however many newer ones are installed."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.operations.servers import postgres_server

TOOLS = ("initdb", "postgres", "pg_isready", "psql")


def install(folder: Path, version: str) -> Path:
    """Binaries that do nothing but name their version."""
    folder.mkdir(parents=True)
    for tool in TOOLS:
        (folder / tool).write_text(f"#!/bin/sh\necho '{tool} (PostgreSQL) {version}'\n")
        (folder / tool).chmod(0o755)
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with versions 9.6, 15 and 17, and with version 16 in PATH; the folder of the three."""
    folder = tmp_path / "postgresql"
    for name, version in (("9.6", "9.6.24"), ("15", "15.4 (Debian 15.4-1)"), ("17", "17rc1")):
        install(folder / name / "bin", version)
    monkeypatch.setattr(postgres_server, "_DEBIAN_FOLDER", folder)
    monkeypatch.setattr(postgres_server.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(postgres_server.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("EMUEDIT_DATABASE", raising=False)
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'local', '16.1')}:/usr/bin:/bin")
    return folder


def write_cluster(folder: Path, version: str) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres/PG_VERSION").write_text(f"{version}\n")


@pytest.mark.parametrize(("version", "place"), [("9.6", "9.6/bin"), ("15", "15/bin"), ("17", "17/bin"), ("16", "../local")])
def test_a_cluster_is_served_by_the_version_that_made_it(installed: Path, tmp_path: Path, version: str, place: str) -> None:
    write_cluster(tmp_path, version)
    postgres, _ = postgres_server.find_postgres(tmp_path, 8500)
    assert postgres is not None
    assert postgres.binaries == (installed / place).resolve()
    postgres.initialise()


def test_a_new_cluster_is_made_by_the_newest(installed: Path, tmp_path: Path) -> None:
    postgres, _ = postgres_server.find_postgres(tmp_path, 8500)
    assert postgres is not None
    assert postgres.binaries == installed / "17/bin"


@pytest.mark.parametrize("is_any_installed", [True, False])
def test_a_cluster_whose_version_is_gone_is_not_started(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_any_installed: bool
) -> None:
    if not is_any_installed:
        monkeypatch.setattr(postgres_server, "_DEBIAN_FOLDER", tmp_path / "nowhere")
        monkeypatch.setenv("PATH", "/nowhere")
    write_cluster(tmp_path, "14")
    postgres, _ = postgres_server.find_postgres(tmp_path, 8500)
    assert postgres is not None, "never SQLite in place of data that are there"
    assert not postgres.answers(), "`status` and `down` go on"
    message = rf"want PostgreSQL 14, which created {tmp_path / 'postgres'}, got .*pg_upgradecluster.* dump .* restore"
    with pytest.raises(postgres_server.PostgresError, match=message):
        postgres.initialise()


def remove_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server.importlib.util, "find_spec", lambda name: None)


def close_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server.os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_server, "_has_user", lambda name: True)
    monkeypatch.setattr(postgres_server, "_can_enter", lambda folder, user: False)


@pytest.mark.parametrize(
    ("break_it", "problem"), [(remove_driver, "the driver of PostgreSQL is missing"), (close_folder, "postgres cannot enter")]
)
def test_a_cluster_is_never_replaced_by_an_empty_sqlite(
    break_it: Callable[[pytest.MonkeyPatch], None], problem: str, installed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    break_it(monkeypatch)
    assert postgres_server.find_postgres(tmp_path, 8500)[0] is None, "want SQLite where there are no data yet"
    write_cluster(tmp_path, "15")
    message = f"want PostgreSQL, which has the data of {tmp_path}, got .*{problem}.* EMUEDIT_DATABASE=sqlite"
    with pytest.raises(postgres_server.PostgresError, match=message):
        postgres_server.find_postgres(tmp_path, 8500)
    (tmp_path / "ports.json").write_text('{"mlflow": 1, "prefect": 2}')
    assert cli.main(["down", "--data", str(tmp_path)]) == 0
    assert cli.main(["status", "--data", str(tmp_path)]) == 1
    assert "stopped" in capsys.readouterr().out
    monkeypatch.setenv("EMUEDIT_DATABASE", "sqlite")
    assert postgres_server.find_postgres(tmp_path, 8500) == (None, "SQLite, as EMUEDIT_DATABASE says")


def test_postgres_is_left_out_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_server, "_find_binaries", lambda version: None)
    assert postgres_server.find_postgres(tmp_path, 8500) == (
        None,
        "SQLite: PostgreSQL is not installed (Debian: apt-get install postgresql)",
    )
    monkeypatch.setattr(postgres_server, "_find_binaries", lambda version: tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_server, "_has_user", lambda name: False)
    postgres, reason = postgres_server.find_postgres(tmp_path, 8500)
    assert postgres is None
    assert "does not run as root" in reason
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    postgres, _ = postgres_server.find_postgres(tmp_path, 8500)
    assert postgres is not None
    assert replace(postgres, password="") == postgres_server.Postgres(tmp_path, tmp_path / "postgres", 8500, "", None)
    assert (tmp_path / "postgres.password").stat().st_mode & 0o777 == 0o600
    assert postgres_server.find_postgres(tmp_path, 8500)[0] == postgres, "want the same password at every start"
