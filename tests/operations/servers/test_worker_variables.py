"""A worker that is started again keeps the variables of its runs, or the start names those that are missing."""

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from emuedit.operations import server_commands
from emuedit.operations.servers import background_process, ceph_store, server_stack, worker_variables
from emuedit.operations.servers.background_process import read_record
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.server_control import Starter
from emuedit.operations.servers.server_stack import Service, StackLayout
from tests.repository import ROOT

SECRET = "5ecret-of-the-test"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder; its worker is ended after the test. The shell has no variables of accounts."""
    named = worker_variables.names_in(dict(os.environ), [*worker_variables.SERVICES, *worker_variables.SETTINGS])
    for name in (*ceph_store.S3_ENV, *named):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    if record := read_record(tmp_path, "worker"):
        background_process.end_process(record, 0.0)


def worker_now(folder: Path, port: int) -> Service:
    """The worker as `emuedit up` would start it from this shell, with a small HTTP server in its place."""
    layout = StackLayout(folder, dict.fromkeys(server_stack.PORT_NAMES, port), None)
    worker = server_stack.services(layout, has_worker=True)[-1]
    arguments = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}"
    return replace(worker, command=replace(worker.command, arguments=arguments), is_healthy=lambda: ask(url, 2.0).is_success)


def start(folder: Path, port: int) -> None:
    with Starter(folder, folder, print) as starter:
        server_commands._start_all(starter, [worker_now(folder, port)], folder)


def end(folder: Path) -> None:
    record = read_record(folder, "worker")
    assert record is not None
    background_process.end_process(record, 1.0)
    background_process.remove_record(folder, "worker")


@pytest.mark.slow
def test_a_start_from_a_shell_without_its_keys_names_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = {"OPENAI_API_KEY": SECRET, "EMUEDIT_PROGRESS_SECONDS": "60", "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start(folder, port)
    record = read_record(folder, "worker")
    assert record is not None
    environment = Path(f"/proc/{record.pid}/environ").read_bytes().decode().split("\0")
    assert {f"{name}={value}" for name, value in variables.items()} <= set(environment)

    for name in variables:
        monkeypatch.delenv(name)
    start(folder, port)
    assert read_record(folder, "worker") == record, "want a worker that runs to be left alone by a shell without its keys"
    assert "started without" not in capsys.readouterr().out

    end(folder)
    start(folder, port)
    output = capsys.readouterr().out
    assert "worker: started without AWS_SECRET_ACCESS_KEY, EMUEDIT_PROGRESS_SECONDS, OPENAI_API_KEY, which it had" in output
    assert SECRET not in output
    assert not any(SECRET in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    start(folder, port)
    output = capsys.readouterr().out
    assert "worker: settings changed; restarting" in output, "want the key to take effect"
    assert "started without" not in output


def test_mlflow_is_named_too_if_it_lacks_the_address_of_its_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mlflow_now() -> background_process.BackgroundCommand:
        layout = StackLayout(folder, dict.fromkeys(server_stack.PORT_NAMES, 8500), None)
        return server_stack.services(layout, has_worker=False)[-2].command

    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_HOME", "/models")  # not for MLflow
    assert worker_variables.record_start(folder, mlflow_now()) == []
    assert SECRET not in (folder / "mlflow-variables.json").read_text()
    for name in ("S3_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "HF_HOME"):
        monkeypatch.delenv(name)
    assert worker_variables.record_start(folder, mlflow_now()) == ["AWS_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL"]
    assert worker_variables.record_start(folder, mlflow_now()) == []


def test_the_names_that_emuedit_reads_are_passed_on() -> None:
    """Every variable of the project that a stage or a flow reads, and the token of the hub, is in one of the lists."""
    only_for_up = {"EMUEDIT_DATABASE", "EMUEDIT_STORE", "EMUEDIT_BUCKET", "EMUEDIT_GPU_SLOTS", "EMUEDIT_WEBHOOK_URL"}
    only_for_up |= {"EMUEDIT_SLACK_URL"}
    set_for_stages = {"EMUEDIT_PARENT_RUN", "EMUEDIT_GUARD", "EMUEDIT_REBUILT_PARENT"}  # by a flow, or by `emuedit rebuild`
    text = "\n".join(path.read_text() for folder in ("emuedit", "flows") for path in (ROOT / folder).rglob("*.py"))
    read = {word for word in text.replace('"', " ").replace("'", " ").split() if word.startswith(("EMUEDIT_", "HF_TOKEN"))}
    read = {name for name in read if name.replace("_", "").isalpha() and name.isupper()}
    named = worker_variables.names_in(dict.fromkeys(read, "1"), [*worker_variables.SERVICES, *worker_variables.SETTINGS])
    assert read - only_for_up - set_for_stages == set(named)
    assert {"EMUEDIT_SMTP_URL", "EMUEDIT_PROGRESS_SECONDS"} <= set(named)
