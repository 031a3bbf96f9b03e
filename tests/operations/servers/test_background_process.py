"""Logs of background processes have a bounded size, and a folder whose files cannot be locked is named."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from emuedit.operations.servers import background_process, server_control
from emuedit.operations.servers.background_process import BackgroundCommand, ProcessRecord, read_record
from emuedit.operations.servers.server_control import ServersError
from emuedit.operations.servers.server_stack import Service
from emuedit.process_identity import pid_space, start_mark


def run_to_end(folder: Path, text: str) -> Path:
    """Start a process that prints a text, wait for its end, and return its log."""
    command = BackgroundCommand("mlflow", [sys.executable, "-S", "-c", f"print({text!r})"], dict(os.environ), "")
    record = background_process.start_process(command, folder, folder)
    os.waitpid(record.pid, 0)
    assert not psutil.pid_exists(record.pid)
    return background_process.log_path(folder, "mlflow")


def test_a_start_renames_a_large_log_and_appends_to_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_process, "MAX_LOG_BYTES", 10)
    log = run_to_end(tmp_path, "first")
    assert run_to_end(tmp_path, "second").read_text() == "first\nsecond\n"
    assert [path.name for path in log.parent.iterdir()] == ["mlflow.log"]
    assert run_to_end(tmp_path, "third").read_text() == "third\n"
    assert log.with_name("mlflow.log.1").read_text() == "first\nsecond\n"
    log.write_text("newer than ten bytes\n")
    run_to_end(tmp_path, "fourth")
    assert log.with_name("mlflow.log.1").read_text() == "newer than ten bytes\n", "want one earlier log, the newest"
    assert sorted(path.name for path in log.parent.iterdir()) == ["mlflow.log", "mlflow.log.1"]


def test_the_log_of_a_setup_program_is_renamed_too(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    with log.open("wb") as stream:
        stream.truncate(background_process.MAX_LOG_BYTES + 1)
    server_control.run_setup(["-S", "-c", "print('new')"], dict(os.environ), tmp_path, log)
    assert log.read_text() == "new\n"
    assert (tmp_path / "setup.log.1").stat().st_size == background_process.MAX_LOG_BYTES + 1


@pytest.mark.parametrize(
    ("host", "space", "place"),
    [
        ("", "", ""),  # of an earlier version
        ("other", "boot 2/pid:[1]", "other"),
        ("here", "boot 1/pid:[1]", ""),
        ("here", "boot 0/pid:[9]", ""),  # before the last start of this machine
        ("here", "boot 1/pid:[2]", "another container of here"),  # a container with the name of its host
        ("an earlier name", "boot 1/pid:[1]", ""),
    ],
)
def test_servers_of_another_host_are_not_taken_for_dead(
    host: str, space: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_process.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(background_process, "pid_space", lambda: "boot 1/pid:[1]")
    record = ProcessRecord("postgres", 2**30, "a mark", "postgresql://127.0.0.1:1", time.time(), "", {}, host, space)
    record.write(tmp_path)
    service = Service(BackgroundCommand("postgres", [], {}, ""), lambda: True, start_s=1.0)
    if not place:
        assert [status.state for status in server_control.statuses(tmp_path, [service])] == ["dead"]
        server_control.forget_dead(tmp_path, print)
        assert read_record(tmp_path, "postgres") is None
        return
    assert [status.state for status in server_control.statuses(tmp_path, [service])] == [f"started on {place}"]
    for command in (server_control.forget_dead, lambda folder, write: server_control.end_all(folder, [service], write)):
        with pytest.raises(ServersError, match=f"started on {place}; run `emuedit down` there, or if it is gone or if this"):
            command(tmp_path, print)
    assert read_record(tmp_path, "postgres") == record


def test_a_process_that_runs_here_is_not_elsewhere_after_the_machine_was_renamed() -> None:
    """On macOS the scope of process ids has the host's name, too."""
    mark = start_mark(os.getpid())
    record = ProcessRecord("mlflow", os.getpid(), mark, "", time.time(), "", {}, "an earlier name", "an earlier name/1")
    assert not record.is_elsewhere
    assert replace(record, start_mark="of another process").is_elsewhere


def test_a_start_records_its_host(tmp_path: Path) -> None:
    run_to_end(tmp_path, "text")
    record = read_record(tmp_path, "mlflow")
    assert record is not None
    assert (record.host, record.is_elsewhere) == (socket.gethostname(), False)


def test_a_folder_whose_files_cannot_be_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = f"want a folder whose files can be locked (flock), got {os.strerror(errno.ENOLCK)}: {tmp_path}; name a folder"
    with pytest.raises(server_control.ServersError, match=re.escape(message)), server_control.locked(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the boot is told by the clock")
@pytest.mark.parametrize("is_this_boot", [True, False])
def test_children_of_a_dead_process_are_killed_even_if_the_clock_was_set(
    is_this_boot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system takes the present time minus the seconds since the boot for the time of the boot."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        child = psutil.Process(int(leader.stdout.readline()))
        mark = start_mark(leader.pid)
        leader.kill()
    space = pid_space() if is_this_boot else "boot 0/pid:[1]"
    record = ProcessRecord("mlflow", leader.pid, mark, "", time.time(), "", {}, socket.gethostname(), space)
    told_s = time.time() + 3600 if is_this_boot else 0.0
    monkeypatch.setattr(psutil, "boot_time", lambda: told_s)
    try:
        assert background_process.end_leftovers(record) == is_this_boot
        assert (start_mark(child.pid) == "") == is_this_boot
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
