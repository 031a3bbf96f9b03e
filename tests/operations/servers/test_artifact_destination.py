"""MLflow's artifacts stay at one location, also if a later start comes from a shell without the variable."""

from pathlib import Path

import pytest

from emuedit import cli
from emuedit.operations import server_commands
from emuedit.operations.servers import ceph_store, server_stack
from emuedit.operations.servers.artifact_destination import (
    DESTINATION_ENV,
    DestinationError,
    read_destination,
    remember_destination,
)
from emuedit.operations.servers.background_process import BackgroundCommand, ProcessRecord
from emuedit.operations.servers.server_stack import StackLayout

BUCKET = "s3://bucket/emuedit/mlflow"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in the working folder; the shell has no settings about S3."""
    for name in (DESTINATION_ENV, *ceph_store.S3_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    data = tmp_path / server_commands.DATA
    data.mkdir()
    return data


def commands(folder: Path) -> dict[str, BackgroundCommand]:
    layout = StackLayout(folder, dict.fromkeys(server_stack.PORT_NAMES, 8500), None)
    return {service.name: service.command for service in server_stack.services(layout, has_worker=True)}


def record(command: BackgroundCommand) -> ProcessRecord:
    """As `start_process` writes it; the process does not exist."""
    return ProcessRecord(command.name, 1, "", "", 0.0, command.settings, command.optional_settings)


def test_a_later_start_without_the_variable_uses_the_same_location(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    remember_destination(folder)
    first = commands(folder)
    monkeypatch.delenv(DESTINATION_ENV)
    remember_destination(folder)
    later = commands(folder)
    for started in (first, later):
        assert started["mlflow"].environment[DESTINATION_ENV] == BUCKET
        assert started["worker"].environment["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] == "false"
    assert all(record(first[name]).has_settings_of(later[name]) for name in first), "want nothing restarted"
    monkeypatch.setenv(DESTINATION_ENV, f"{BUCKET}/")
    remember_destination(folder)
    assert all(record(later[name]).has_settings_of(command) for name, command in commands(folder).items())


def test_another_location_is_refused_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    remember_destination(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setenv(DESTINATION_ENV, "sftp://ada:s3cret@host/other")
    assert cli.main(["up"]) == 1
    error = capsys.readouterr().err
    assert f"want {DESTINATION_ENV} not set, or {BUCKET} as at the first start of {folder}, got sftp://ada:***@host" in error
    assert f"write the new location to {folder}/artifacts-destination" in error
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name not in ("lock", ".gitignore")} == before


def test_artifacts_in_the_data_folder_keep_a_later_variable_from_hiding_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_destination(folder)
    (folder / "artifacts/0").mkdir(parents=True)
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    with pytest.raises(DestinationError, match=f"or {folder}/artifacts as at the first start"):
        remember_destination(folder)
    assert read_destination(folder) == str(folder / "artifacts")


def test_without_artifacts_a_later_variable_is_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_destination(folder)
    assert read_destination(folder) == str(folder / "artifacts")
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    remember_destination(folder)
    monkeypatch.delenv(DESTINATION_ENV)
    assert read_destination(folder) == BUCKET
    assert (folder / "artifacts-destination").stat().st_mode & 0o777 == 0o600, "a location may contain a password"


def test_a_server_of_a_version_that_stored_no_location_wants_the_variable_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    record(commands(folder)["mlflow"]).write(folder)
    monkeypatch.delenv(DESTINATION_ENV)
    with pytest.raises(DestinationError, match="set it once, and later starts remember it"):
        remember_destination(folder)
    monkeypatch.setenv(DESTINATION_ENV, BUCKET)
    remember_destination(folder)
    monkeypatch.delenv(DESTINATION_ENV)
    remember_destination(folder)
    assert read_destination(folder) == BUCKET


def test_a_path_does_not_depend_on_the_working_folder_of_a_later_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DESTINATION_ENV, "../disk")
    remember_destination(folder)
    expected = str(folder.parent.parent / "disk")
    monkeypatch.chdir(folder)
    monkeypatch.delenv(DESTINATION_ENV)
    assert read_destination(folder) == expected
