"""Start, status and end of servers, with small HTTP servers in place of MLflow and Prefect."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from emuedit.operations.servers import background_process, ceph_store, local_ports, postgres_server, server_control, server_stack
from emuedit.operations.servers.background_process import BackgroundCommand, ProcessRecord, read_record
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.server_control import ServersError, Starter
from emuedit.operations.servers.server_stack import Service, StackLayout

WITH_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "http.server", sys.argv[1], "--bind", "127.0.0.1"])
child.wait()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; what runs in it is killed at the end, whatever the test did."""
    yield tmp_path
    for path in tmp_path.glob("*.pid"):
        record = read_record(tmp_path, path.stem)
        if record:
            background_process.end_process(record, 0.0)
            background_process.end_leftovers(record)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def http_service(name: str, port: int | None = None, arguments: list[str] | None = None, start_s: float = 20.0) -> Service:
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    default = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    command = BackgroundCommand(name, arguments or default, dict(os.environ), url)
    return Service(command, lambda: ask(f"{url}/", 2.0).is_success, start_s=start_s, grace_s=3.0)


def start(folder: Path, *services: Service) -> list[str]:
    lines: list[str] = []
    with Starter(folder, folder, lines.append) as starter:
        starter.start(services)
    return lines


def running(folder: Path, name: str) -> ProcessRecord:
    record = read_record(folder, name)
    assert record is not None
    assert record.is_running
    return record


@pytest.mark.slow
def test_services_start_and_end_with_records_and_logs(folder: Path) -> None:
    services = [http_service("mlflow"), http_service("prefect")]
    assert [line.split(":")[0] for line in start(folder, *services)] == ["mlflow", "prefect"]
    assert all(os.getsid(running(folder, name).pid) == running(folder, name).pid for name in ("mlflow", "prefect"))
    assert [status.state for status in server_control.statuses(folder, services)] == ["running", "running"]
    assert all((status.memory_bytes or 0) > 2**20 for status in server_control.statuses(folder, services))
    pids = [running(folder, name).pid for name in ("mlflow", "prefect")]
    lines: list[str] = []
    assert server_control.end_all(folder, services, lines.append) == 2
    assert lines == ["prefect: stopped", "mlflow: stopped"], "want the opposite order of the start"
    assert not any(background_process.start_mark(pid) for pid in pids)
    assert not list(folder.glob("*.pid"))
    assert "GET / HTTP" in background_process.log_path(folder, "mlflow").read_text()
    assert server_control.end_all(folder, services, lines.append) == 0


@pytest.mark.slow
def test_a_second_start_finds_what_runs_and_starts_what_is_missing(folder: Path) -> None:
    services = [http_service("mlflow"), http_service("prefect")]
    start(folder, *services)
    before = running(folder, "mlflow"), running(folder, "prefect")
    os.kill(before[1].pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before[1].pid)], timeout=5)
    lines: list[str] = []
    server_control.forget_dead(folder, lines.append)
    assert lines == [f"prefect: process {before[1].pid} no longer exists"]
    assert "mlflow: already running" in start(folder, *services)[0]
    assert running(folder, "mlflow") == before[0]
    assert running(folder, "prefect").pid != before[1].pid


@pytest.mark.slow
def test_a_server_with_other_settings_is_started_again(folder: Path) -> None:
    port = free_port()
    start(folder, http_service("mlflow", port))
    first = running(folder, "mlflow")
    arguments = [sys.executable, "-u", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    lines = start(folder, http_service("mlflow", port, arguments))
    assert "settings changed" in lines[0]
    assert running(folder, "mlflow").pid != first.pid
    assert not first.is_running


def test_a_process_id_that_another_program_got_is_not_touched(folder: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = ProcessRecord("mlflow", stranger.pid, "an earlier start", "http://127.0.0.1:1", time.time(), "")
        record.write(folder)
        assert not record.is_running
        assert [status.state for status in server_control.statuses(folder, [http_service("mlflow")])] == ["dead"]
        assert background_process.end_process(record, 0.1)
        assert background_process.end_leftovers(record) == 0
        assert server_control.end_all(folder, [], print) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.slow
def test_children_of_a_killed_server_are_ended_so_that_its_port_is_free(folder: Path) -> None:
    port = free_port()
    service = http_service("mlflow", port, [sys.executable, "-c", WITH_CHILD, str(port)])
    start(folder, service)
    record = running(folder, "mlflow")
    os.kill(record.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(record.pid)], timeout=5)
    assert not local_ports.is_free(port)
    lines: list[str] = []
    server_control.forget_dead(folder, lines.append)
    assert "stopped 1 leftover child processes" in lines[0]
    assert local_ports.is_free(port)


@pytest.mark.slow
def test_when_one_does_not_come_up_all_that_were_started_are_ended(folder: Path) -> None:
    silent = [sys.executable, "-c", "import time; print('waiting', flush=True); time.sleep(60)"]
    start(folder, http_service("postgres"))
    services = [http_service("mlflow"), http_service("prefect", arguments=silent, start_s=2.0)]
    with pytest.raises(ServersError, match=r"did not answer at .* within 2 s; the end of .*\n  waiting"):
        start(folder, *services)
    assert sorted(path.name for path in folder.glob("*.pid")) == ["postgres.pid"], "want those of earlier starts untouched"
    assert running(folder, "postgres")


@pytest.mark.slow
def test_a_server_that_ends_at_its_start_shows_its_log(folder: Path) -> None:
    service = http_service("mlflow", arguments=[sys.executable, "-c", "raise SystemExit('no such database')"])
    with pytest.raises(ServersError, match=r"mlflow exited during startup; the end of .*\n  no such database"):
        start(folder, service)


def test_ports_are_remembered_unless_another_program_took_them(tmp_path: Path) -> None:
    base = free_port()
    ports = local_ports.choose_ports(tmp_path, ["mlflow", "prefect"], base)
    assert len(set(ports.values())) == 2
    assert min(ports.values()) >= base
    assert local_ports.choose_ports(tmp_path, ["mlflow", "prefect"], base + 50) == ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports["mlflow"]))
        taken.listen()
        assert local_ports.choose_ports(tmp_path, ["mlflow", "prefect"], base, running={"mlflow"}) == ports
        moved = local_ports.choose_ports(tmp_path, ["mlflow", "prefect"], base)
    assert moved["prefect"] == ports["prefect"]
    assert moved["mlflow"] not in ports.values()


def test_two_starts_at_once_are_refused(folder: Path) -> None:
    refusal = pytest.raises(ServersError, match="another `emuedit up` or `down`")
    with server_control.locked(folder), refusal, server_control.locked(folder):
        pass


def test_the_env_file_is_for_the_shell(tmp_path: Path) -> None:
    path = server_control.write_env(tmp_path, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "ODD": "a b'c"})
    process = subprocess.run(
        ["bash", "-c", f'source {path}; printf %s "$MLFLOW_TRACKING_URI $ODD"'], capture_output=True, text=True
    )
    assert process.stdout == "http://127.0.0.1:1 a b'c"
    assert path.stat().st_mode & 0o777 == 0o600, "it has the keys of the store"
    lines = server_control.export_lines({"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "KEY": "s3cret"}, ["KEY"])
    assert lines == ["export MLFLOW_TRACKING_URI=http://127.0.0.1:1", "export KEY=***"]


def layout(
    tmp_path: Path, postgres: postgres_server.Postgres | None = None, store: ceph_store.CephStore | None = None
) -> StackLayout:
    ports = {name: 8500 + index for index, name in enumerate(server_stack.PORT_NAMES)}
    return StackLayout(tmp_path, ports, postgres, store, "pa55-of-the-test")


def test_no_password_is_in_a_command_line_or_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ceph_store.S3_ENV:
        monkeypatch.delenv(name, raising=False)
    postgres = postgres_server.Postgres(Path("/pg"), tmp_path, 8500, "p4ssw0rd-of-the-test", None)
    store = ceph_store.CephStore(tmp_path / "store", 8504, 8505, "access", "s3cret-of-the-test")
    services = server_stack.services(layout(tmp_path, postgres, store), has_worker=True)
    assert [service.name for service in services] == list(server_stack.NAMES)
    for service in services:
        line = " ".join(service.command.arguments) + service.command.url
        assert "p4ssw0rd" not in line
        assert "s3cret" not in line
        assert "pa55" not in line
    by_name = {service.name: service.command.environment for service in services}
    users = [name for name, environment in by_name.items() if "s3cret-of-the-test" in environment.values()]
    assert users == ["store", "mlflow", "prefect", "worker"]
    assert by_name["mlflow"]["MLFLOW_S3_ENDPOINT_URL"] == store.url
    assert "p4ssw0rd" in by_name["mlflow"]["MLFLOW_BACKEND_STORE_URI"]
    assert not any("p4ssw0rd" in value for value in by_name["worker"].values())


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("MLFLOW_ARTIFACTS_DESTINATION", ["mlflow", "worker"]),
        ("AWS_SECRET_ACCESS_KEY", ["mlflow", "worker"]),
        ("S3_ENDPOINT_URL", ["mlflow", "worker"]),
        ("OPENAI_API_KEY", ["worker"]),
        ("HF_TOKEN", ["worker"]),
        ("EMUEDIT_SMTP_URL", ["worker"]),
        ("EMUEDIT_PROGRESS_SECONDS", []),
        ("EDITOR", []),
    ],
)
def test_servers_with_other_accounts_are_started_again_and_secrets_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, names: list[str]
) -> None:
    def commands() -> dict[str, BackgroundCommand]:
        return {service.name: service.command for service in server_stack.services(layout(tmp_path), has_worker=True)}

    for name in ("MLFLOW_ARTIFACTS_DESTINATION", *ceph_store.S3_ENV, variable):
        monkeypatch.delenv(name, raising=False)
    before = records(commands())
    monkeypatch.setenv(variable, "s3://s3cret-of-the-test/")
    after = commands()
    assert [name for name in before if not before[name].has_settings_of(after[name])] == names
    started = records(after)
    for name in ("mlflow", "worker"):
        started[name].write(tmp_path)
        assert "s3cret" not in (tmp_path / f"{name}.pid").read_text()
    monkeypatch.delenv(variable)
    assert all(started[name].has_settings_of(command) for name, command in commands().items()), "another shell, without them"


def records(commands: dict[str, BackgroundCommand]) -> dict[str, ProcessRecord]:
    """As `start_process` writes them."""
    return {
        name: ProcessRecord(name, 1, "", "", 0.0, command.settings, command.optional_settings)
        for name, command in commands.items()
    }


def test_clients_do_not_follow_the_servers_own_address_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ARTIFACTS_DESTINATION", raising=False)
    names = {"MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", *server_stack.HEARTBEAT_ENV}
    assert set(layout(tmp_path).exports) == names
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", "s3://bucket/emuedit/mlflow")
    assert layout(tmp_path).exports["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] == "false"


@pytest.mark.slow
def test_local_servers_are_reached_past_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    assert server_stack.child_environment(layout(tmp_path))["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1"
    service = http_service("mlflow")
    start(tmp_path, service)
    try:
        assert ask(f"{service.command.url}/", 2.0).status == 200
    finally:
        server_control.end_all(tmp_path, [service], print)


def test_the_sqlite_database_has_a_write_ahead_log(tmp_path: Path) -> None:
    server_stack.turn_on_write_ahead_log(tmp_path / "mlflow.db")
    environment = server_stack.services(layout(tmp_path), has_worker=False)[0].command.environment
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert (tmp_path / "mlflow.db").read_bytes()[18:20] == b"\x02\x02", "want file format 2, which is the write-ahead log"


def test_records_that_cannot_be_read_name_no_process(tmp_path: Path) -> None:
    assert read_record(tmp_path, "mlflow") is None
    (tmp_path / "mlflow.pid").write_text("{")
    assert read_record(tmp_path, "mlflow") is None
    (tmp_path / "mlflow.pid").write_text(json.dumps({"pid": 1}))
    assert read_record(tmp_path, "mlflow") is None
