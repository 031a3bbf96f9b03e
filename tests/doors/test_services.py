"""Doors to services: MLflow and Prefect that refuse, hang, or are something else. One line per case."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from emuedit import cli
from emuedit.editor import package_folder
from emuedit.tracking import service_errors
from emuedit.tracking.service_errors import ServiceError
from flows import prefect_access
from tests.doors.fake_servers import broken_server
from tests.repository import ROOT

SECONDS = 10.0
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
TIMEOUTS = float(service_errors._PROBE_ENV[TIMEOUT]), prefect_access._ANSWER_S
"""Seconds that a user waits for a server that never answers; these tests wait for one."""

# name -> (environment variable -> value, where {url} stands for a server with this status and body), what the line must say
PREFECT: dict[str, tuple[dict[str, str], tuple[int, bytes], str]] = {
    "the server of yesterday": (
        {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
        (200, b""),
        r"no Prefect server answers at .*refused",
    ),
    "it never answers": ({"PREFECT_API_URL": "{url}/api"}, (0, b""), r"no Prefect server answers at .*timed out"),
    "a port that another program has": ({"PREFECT_API_URL": "{url}/api"}, (404, b"no"), r"is not Prefect's API"),
    "the address of its pages": ({"PREFECT_API_URL": "{url}"}, (200, b"<!doctype html>"), r"use a URL that ends in /api"),
    "a list of other API": ({"PREFECT_API_URL": "{url}/api"}, (200, b"[]"), r"is not Prefect's API"),
    "500": ({"PREFECT_API_URL": "{url}/api"}, (500, b"x"), r"fails \(500\); check its log"),
    "503 while it starts": ({"PREFECT_API_URL": "{url}/api"}, (503, b""), r"fails \(503\)"),
    "401 without credentials": ({"PREFECT_API_URL": "{url}/api"}, (401, b""), r"requires credentials \(401\); set PREFECT"),
    "no http://": ({"PREFECT_API_URL": "localhost:4200/api"}, (200, b""), r"want PREFECT_API_URL such as http"),
    "no such host": ({"PREFECT_API_URL": "http://no-such-host.invalid/api"}, (200, b""), r"no Prefect server answers"),
    "a home in a file": (
        {"PREFECT_HOME": "notes.txt/prefect"},
        (200, b""),
        r"want a folder that Prefect can write as PREFECT_HOME, got notes\.txt/prefect",
    ),
    "a home that is read-only": ({"PREFECT_HOME": "/proc/prefect"}, (200, b""), r"want a folder that Prefect can write"),
}

PREFECT_LIBRARIES = (
    "pydantic", "pydantic_settings", "griffe", "pygments", "fsspec", "rich.console", "coolname", "pathspec", "anyio", "httpx",
    "websockets", "jsonschema", "prometheus_client", "pendulum", "psutil", "opentelemetry.trace",
)  # fmt: skip
"""What Prefect imports apart from its own modules, without parts that take little time."""
# name -> (environment, files of the working folder, what the line must say)
PREFECT_SETTINGS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "a level that there is not": (
        {"PREFECT_LOGGING_LEVEL": "LOUD"},
        {},
        r"its setting level: .*got 'LOUD'; check PREFECT_LOGGING_LEVEL",
    ),
    "a number in words": (
        {"PREFECT_API_REQUEST_TIMEOUT": "soon"},
        {},
        r"its setting request_timeout: .*check PREFECT_API_REQUEST_TIMEOUT",
    ),
    "headers that are no JSON": ({"PREFECT_CLIENT_CUSTOM_HEADERS": "abc"}, {}, r"cannot read its settings.*custom_headers"),
    "half a profile": (
        {"PREFECT_PROFILES_PATH": "profiles.toml"},
        {"profiles.toml": "active = ["},
        r"cannot read profiles\.toml: ",
    ),
    "half a settings file": ({}, {"prefect.toml": "log = ["}, r"cannot read prefect\.toml: .*correct the file or move it away"),
    "a wrong value in a settings file": ({}, {"prefect.toml": "logging = {level = 'LOUD'}"}, r"check \.env, prefect\.toml"),
}

IMPORT_SETTINGS = """
import importlib, json, os, sys
from pathlib import Path
from flows import prefect_access
for name in LIBRARIES:
    importlib.import_module(name)
assert "prefect" not in sys.modules
for case in sys.argv[1:]:
    if process := os.fork():
        assert os.waitpid(process, 0)[1] == 0, case
        continue
    os.chdir(case)
    os.environ.clear()
    os.environ.update(json.loads(Path("environment.json").read_text()))
    os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT), 1)
    try:
        prefect_access.import_settings()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
""".replace("LIBRARIES", repr(PREFECT_LIBRARIES))
"""Imports Prefect in each folder of the arguments, in a fork of a process that has imported half of it, its libraries."""

# name -> (status and body of a server, or a URI), what the line must say
MLFLOW: dict[str, tuple[tuple[int, bytes] | str, str]] = {
    "nothing listens": ("http://127.0.0.1:9", r"no server answers there; start it"),
    "401 of basic auth": ((401, b"You are not authenticated"), r"rejects the credentials \(401\).*renew MLFLOW_TRACKING_TOKEN"),
    "401 as JSON": ((401, b'{"error_code": "UNAUTHENTICATED", "message": "no"}'), r"rejects the credentials \(401\)"),
    "403": ((403, b"Permission denied"), r"lacks the permission \(403\)"),
    "403 as JSON": ((403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'), r"lacks the permission \(403\)"),
    "500": ((500, b"Internal Server Error"), r"fails \(500 or above\)"),
    "502 of a proxy": ((502, b"<html>Bad Gateway</html>"), r"the proxy in front of it gets no answer"),
    "503 while it starts": ((503, b""), r"fails \(500 or above\)"),
    "429": ((429, b"slow down"), r"limits the rate of requests \(429\); try again later"),
    "404 of another program": ((404, b"Not Found"), r"no MLflow API \(404\)"),
    "HTML of another program": ((200, b"<!doctype html><html></html>"), r"not MLflow; check the URL"),
    "JSON of another program": ((200, b"{}"), r"not MLflow; check the URL"),
    "a JSON list": ((200, b"[1]"), r"not MLflow; check the URL"),
    "it never answers": ((0, b""), r"does not answer in time"),
    "no such host": ("http://no-such-host.invalid:5000", r"no such host"),
    "a folder of runs": ("file:./mlruns", r"no longer stores runs in folders; use a database such as sqlite:///mlflow.db"),
    "a folder without file:": ("./mlruns", r"no longer stores runs in folders"),
    "a line break at the end": ("http://127.0.0.1:9\n", r"MLflow at http://127.0.0.1:9: want a URL such as http://"),
    "a host without http://": ("localhost:5000", r"neither http\(s\):// nor sqlite"),
    "an unknown scheme": ("mlflow://server", r"neither http\(s\):// nor sqlite"),
    "a file that is no database": ("sqlite:///notes.txt", r"not a database, or is damaged"),
    "a database in no folder": ("sqlite:////proc/nowhere/mlflow.db", r"folder of the file cannot be created"),
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in ("PREFECT_API_URL", "EMUEDIT_PARENT_RUN", *service_errors.SERVICE_ENV):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setitem(service_errors._PROBE_ENV, TIMEOUT, "1")
    monkeypatch.setattr(prefect_access, "_ANSWER_S", 1.0)
    (tmp_path / "notes.txt").write_text("remember the milk\n" * 500)
    return tmp_path


def test_nobody_waits_long_for_a_server() -> None:
    assert max(TIMEOUTS) < SECONDS


@pytest.fixture(params=MLFLOW)
def mlflow_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLFLOW_TRACKING_URI names what a case says; the words that must be said."""
    place, words = MLFLOW[request.param]
    with ExitStack() as stack:
        uri = place if isinstance(place, str) else stack.enter_context(broken_server(*place))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield words


@pytest.mark.slow
def test_mlflow_that_is_away_is_described_in_seconds(mlflow_away: str) -> None:
    start = time.monotonic()
    with pytest.raises(ServiceError, match=mlflow_away):
        service_errors.check()
    assert time.monotonic() - start < SECONDS


def test_databricks_without_credentials_is_described() -> None:
    error = MlflowException("Reading Databricks credential configuration failed with MLflow tracking URI 'databricks'.")
    assert "there are no Databricks credentials; run `databricks auth login`" in service_errors.describe(error)


@pytest.mark.slow
def test_edits_fall_back_to_the_editor_that_lies_here(
    mlflow_away: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "models/editor").mkdir(parents=True)
    start = time.monotonic()
    assert package_folder.resolve_source(None) == (Path("models"), "models/editor")
    assert time.monotonic() - start < SECONDS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MLflow at ")
    assert line.endswith("using models/editor instead of the champion")


@pytest.mark.slow
def test_without_an_editor_here_the_line_says_both(mlflow_away: str) -> None:
    with pytest.raises(package_folder.PackageError, match="the champion is unreachable, and there is no models/editor here"):
        package_folder.resolve_source(None)


@pytest.mark.slow
@pytest.mark.parametrize("case", PREFECT)
def test_prefect_that_is_away_is_described_in_seconds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, answer, words = PREFECT[case]
    start = time.monotonic()
    with broken_server(*answer) as url, monkeypatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value.format(url=url))
        with pytest.raises(prefect_access.ServerError, match=words):
            prefect_access.check()
    assert time.monotonic() - start < SECONDS


@pytest.mark.slow
def test_settings_that_prefect_cannot_read_are_named(workspace: Path) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    for case, (variables, files, _) in PREFECT_SETTINGS.items():
        (folder := workspace / case).mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        environment = {**others, "PREFECT_HOME": str(folder), **variables}
        (folder / "environment.json").write_text(json.dumps(environment))
    command = [sys.executable, "-c", IMPORT_SETTINGS, *PREFECT_SETTINGS]
    subprocess.run(command, cwd=workspace, env={**others, "PYTHONPATH": str(ROOT)}, check=True)
    for case, (_, _, words) in PREFECT_SETTINGS.items():
        (line,) = (workspace / case / "output.txt").read_text().splitlines()
        assert re.search(words, line), (case, line)


def test_a_prefect_server_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []
    ask = prefect_access.ask
    monkeypatch.setattr(prefect_access, "ask", lambda url, *rest: (urls.append(url), ask(url, *rest))[1])
    with broken_server(200, b"true") as url:
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        prefect_access.check()
    assert (urls, os.environ["PREFECT_API_URL"]) == ([f"{url}/api/health"], f"{url}/api")


def test_a_home_that_is_read_only_is_replaced_where_nobody_named_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("PREFECT_HOME", "")
    prefect_access.check()
    assert "~/.prefect is not writable" in capsys.readouterr().out
    assert Path(os.environ["PREFECT_HOME"]).parent.is_dir()


@pytest.mark.parametrize("words", [["models"], ["models", "--moves"], ["rollback"], ["promote", "1"], ["lineage", "1"], ["sync"]])
def test_commands_about_the_registry_say_it_in_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with broken_server(401, b"no") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("//", "//me:secret@"))
        assert cli.main(words) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "rejects the credentials (401)" in line
    assert "secret" not in line


@pytest.mark.slow
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


@pytest.mark.parametrize(("limit", "meanwhile"), [(None, "3600"), (service_errors.SERVICE_ENV[TIMEOUT], "3600"), ("77", "77")])
def test_files_of_several_gb_may_take_long(limit: str | None, meanwhile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps artifacts in S3 answers an upload when it has passed the file on: 10 s were too short for a U-Net."""
    monkeypatch.delenv(TIMEOUT, raising=False)
    if limit is not None:
        monkeypatch.setenv(TIMEOUT, limit)
    with service_errors.transferring():
        assert os.environ[TIMEOUT] == meanwhile, "a limit that the user chose stays"
    assert os.environ.get(TIMEOUT) == limit
