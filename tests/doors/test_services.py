"""Doors to services: MLflow and Prefect that refuse, hang, or are something else. One line per case."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.editor import package_folder
from emuedit.tracking import service_errors
from emuedit.tracking.service_errors import ServiceError
from tests.doors.fake_servers import broken_server

SECONDS = 10.0

# name -> (status and body of a server, or a URI), what the line must say
MLFLOW: dict[str, tuple[tuple[int, bytes] | str, str]] = {
    "nothing listens": ("http://127.0.0.1:9", r"nothing answers there; start it"),
    "401 of basic auth": ((401, b"You are not authenticated"), r"refuses the credentials \(401\)"),
    "401 as JSON": ((401, b'{"error_code": "UNAUTHENTICATED", "message": "no"}'), r"refuses the credentials \(401\)"),
    "403": ((403, b"Permission denied"), r"may not do that \(403\)"),
    "403 as JSON": ((403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'), r"may not do that \(403\)"),
    "500": ((500, b"Internal Server Error"), r"fails \(500 or above\)"),
    "502 of a proxy": ((502, b"<html>Bad Gateway</html>"), r"fails \(500 or above\)"),
    "503 while it starts": ((503, b""), r"fails \(500 or above\)"),
    "429": ((429, b"slow down"), r"fails \(500 or above\)|with an error"),
    "404 of another program": ((404, b"Not Found"), r"no MLflow API \(404\)"),
    "HTML of another program": ((200, b"<!doctype html><html></html>"), r"not MLflow; is the address right"),
    "JSON of another program": ((200, b"{}"), r"not MLflow; is the address right"),
    "a JSON list": ((200, b"[1]"), r"not MLflow; is the address right"),
    "it never answers": ((0, b""), r"does not answer in time"),
    "no such host": ("http://no-such-host.invalid:5000", r"no such host"),
    "a host without http://": ("localhost:5000", r"neither http\(s\):// nor sqlite"),
    "an unknown scheme": ("mlflow://server", r"neither http\(s\):// nor sqlite"),
    "a file that is no database": ("sqlite:///notes.txt", r"no database, or is damaged"),
    "a database in no folder": ("sqlite:////proc/nowhere/mlflow.db", r"folder of the file cannot be made"),
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in ("PREFECT_API_URL", "EMUEDIT_PARENT_RUN", *service_errors.SERVICE_ENV):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "notes.txt").write_text("remember the milk\n" * 500)
    return tmp_path


@pytest.fixture(params=MLFLOW)
def mlflow_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLFLOW_TRACKING_URI names what a case says; the words that must be said."""
    place, words = MLFLOW[request.param]
    with ExitStack() as stack:
        uri = place if isinstance(place, str) else stack.enter_context(broken_server(*place))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield words


def test_mlflow_that_is_away_is_described_in_seconds(mlflow_away: str) -> None:
    start = time.monotonic()
    with pytest.raises(ServiceError, match=mlflow_away):
        service_errors.check()
    assert time.monotonic() - start < SECONDS


def test_edits_fall_back_to_the_editor_that_lies_here(
    mlflow_away: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "models/editor").mkdir(parents=True)
    start = time.monotonic()
    assert package_folder.resolve_source(None) == (Path("models"), "models/editor")
    assert time.monotonic() - start < SECONDS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow at ")
    assert line.endswith("models/editor is used instead of the champion")


def test_without_an_editor_here_the_line_says_both(mlflow_away: str) -> None:
    with pytest.raises(package_folder.PackageError, match="the champion is out of reach, and there is no models/editor here"):
        package_folder.resolve_source(None)


@pytest.mark.parametrize("words", [["models"], ["models", "--moves"], ["rollback"], ["promote", "1"], ["lineage", "1"], ["sync"]])
def test_commands_about_the_registry_say_it_in_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with broken_server(401, b"no") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//me:secret@"))
        assert cli.main(words) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "refuses the credentials (401)" in line
    assert "secret" not in line


def test_limits_that_the_user_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some want to wait an hour for a server that restarts (ecmwf/anemoi-training#111)."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with broken_server(0) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        start = time.monotonic()
        with pytest.raises(ServiceError, match="in time"):
            service_errors.check()
    assert 1.9 < time.monotonic() - start < SECONDS
