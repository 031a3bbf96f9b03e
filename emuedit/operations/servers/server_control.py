"""Start the missing servers of a data folder, stop all of them, and report their state."""

import contextlib
import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emuedit.data.atomic_file import write_private
from emuedit.operations.servers.background_process import (
    ProcessRecord,
    end_leftovers,
    end_process,
    log_path,
    memory_bytes,
    read_record,
    remove_record,
    rename_large_log,
    start_process,
)
from emuedit.operations.servers.server_stack import NAMES, Service
from emuedit.progress import waiting

ENV_FILE = "env"
"""File in the data folder with variables for the shell's `source`."""
LOCK_FILE = "lock"
_POLL_S = 0.3
_LOG_LINES = 15
_GRACE_S = 20.0
_ANSWER_S = 15.0  # for the answer of a busy server


class ServersError(RuntimeError):
    """Raised if a server does not start; the message contains the end of its log."""


@dataclass(frozen=True)
class ServerStatus:
    """State of a service: `state` is running, unhealthy, dead (exited by itself), stopped or `started on HOST`, another one."""

    name: str
    state: str
    url: str = ""
    pid: int | None = None
    seconds: float | None = None
    memory_bytes: int | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether the service runs and answers."""
        return self.state == "running"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from starting or stopping servers of the folder. Raises ServersError if the folder is locked or cannot be."""
    with (folder / LOCK_FILE).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServersError(f"another `emuedit up` or `down` uses {folder}; wait until it has finished") from None
        except OSError as error:  # without a file name, from a file system without flock
            problem = f"got {error.strerror}: {folder}; name a folder of a local disk with --data"
            raise ServersError(f"want a folder whose files can be locked (flock), {problem}") from error
        yield


def forget_dead(folder: Path, print_line: Callable[[str], None]) -> None:
    """Remove the records of dead processes, and kill their leftover children.

    Raises ServersError if servers of the folder were started on another host: two on the same files would damage them.
    """
    if places := {record.place for name in NAMES if (record := read_record(folder, name)) and record.is_elsewhere}:
        raise ServersError(
            f"want the servers of {folder} here, on {socket.gethostname()}, got some that were started on "
            f"{', '.join(sorted(places))}; run `emuedit down` there, or if it is gone or if this machine was renamed, "
            f"delete {folder}/*.pid"
        )
    for name in NAMES:
        record = read_record(folder, name)
        if record and not record.is_running:
            n_left = end_leftovers(record)
            print_line(
                f"{name}: process {record.pid} no longer exists"
                + (f"; stopped {n_left} leftover child processes" if n_left else "")
            )
            remove_record(folder, name)


def running_names(folder: Path) -> set[str]:
    """Services of the folder with a running process."""
    records = {name: read_record(folder, name) for name in NAMES}
    return {name for name, record in records.items() if record and record.is_running}


class Starter:
    """Starts services, and stops those that it started if the block fails.

    with Starter(folder, cwd, print) as starter:
        starter.start([service])
    """

    def __init__(self, folder: Path, cwd: Path, print_line: Callable[[str], None]) -> None:
        self._folder, self._cwd, self._print_line = folder, cwd, print_line
        self._started: list[tuple[Service, ProcessRecord]] = []

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        for service, record in reversed(self._started):
            self._print_line(f"{service.name}: stopped, because the start failed")
            end_process(record, service.grace_s, service.stop_signal)
            remove_record(self._folder, service.name)

    def start(self, services: Sequence[Service]) -> None:
        """Start the services that do not run, in parallel, and wait until all are healthy. Raises ServersError."""
        new = [service for service in services if not self._runs_already(service)]
        for service in new:
            try:
                record = start_process(service.command, self._folder, self._cwd)
            except OSError as error:
                raise ServersError(f"{service.name}: {service.command.arguments[0]} does not start: {error}") from error
            self._started.append((service, record))
        for service, record in self._started[len(self._started) - len(new) :]:
            with waiting(f"starting {service.name}"):
                self._wait(service, record)
            self._print_line(f"{service.name}: up at {service.command.url} after {time.time() - record.started_s:.0f} s")

    def end(self, service: Service) -> None:
        """Stop a running service; `start` starts it again."""
        record = read_record(self._folder, service.name)
        if record and record.is_running:
            end_process(record, service.grace_s, service.stop_signal)
            remove_record(self._folder, service.name)
            self._print_line(f"{service.name}: stopped for an upgrade")

    def _runs_already(self, service: Service) -> bool:
        record = read_record(self._folder, service.name)
        if record is None:
            return False
        if not record.is_running:
            return False
        if not record.has_settings_of(service.command):
            self._print_line(f"{service.name}: settings changed; restarting")
            end_process(record, service.grace_s, service.stop_signal)
            return False
        until = time.monotonic() + _ANSWER_S
        while not service.is_healthy():
            if time.monotonic() > until or not record.is_running:
                self._print_line(f"{service.name}: process {record.pid} does not answer; restarting")
                end_process(record, service.grace_s, service.stop_signal)
                return False
            time.sleep(_POLL_S)
        self._print_line(f"{service.name}: already running at {record.url}")
        return True

    def _wait(self, service: Service, record: ProcessRecord) -> None:
        until = time.monotonic() + service.start_s
        while not service.is_healthy():
            if not record.is_running:
                raise ServersError(f"{service.name} exited during startup{self._end_of_log(service.name)}")
            if time.monotonic() > until:
                text = f"{service.name} did not answer at {service.command.url} within {service.start_s:g} s"
                raise ServersError(text + self._end_of_log(service.name))
            time.sleep(_POLL_S)
        if not record.is_running:  # something else answers at its port
            raise ServersError(f"{service.name} exited during startup{self._end_of_log(service.name)}")

    def _end_of_log(self, name: str) -> str:
        path = log_path(self._folder, name)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return f"; the end of {path}:\n" + "\n".join(f"  {line}" for line in lines)


def run_setup(arguments: Sequence[str], environment: dict[str, str], cwd: Path, log: Path) -> None:
    """Run a program to its end, with its output in a log. Raises ServersError."""
    command = [sys.executable, *arguments]
    rename_large_log(log)
    with log.open("a", encoding="utf-8") as stream:
        status = subprocess.run(command, env=environment, cwd=cwd, stdout=stream, stderr=stream, check=False).returncode  # noqa: S603
    if status:
        end = "\n".join(f"  {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
        raise ServersError(f"`{shlex.join(['python', *arguments])}` failed with exit status {status}; the end of {log}:\n{end}")


def end_all(folder: Path, services: Sequence[Service], print_line: Callable[[str], None]) -> int:
    """Stop the services, the last one first; returns the number of those that ran."""
    forget_dead(folder, print_line)
    by_name = {service.name: service for service in services}
    n_ended = 0
    for name in reversed(NAMES):
        record = read_record(folder, name)
        if record and record.is_running:
            service = by_name.get(name)
            with waiting(f"stopping {name}"):
                grace_s = service.grace_s if service else _GRACE_S
                graceful = end_process(record, grace_s, service.stop_signal if service else 15)
            print_line(f"{name}: stopped" + ("" if graceful else f", killed after {grace_s:g} s"))
            n_ended += 1
        remove_record(folder, name)
    return n_ended


def statuses(folder: Path, services: Sequence[Service]) -> list[ServerStatus]:
    """The state of each service."""
    result = []
    for service in services:
        record = read_record(folder, service.name)
        if record is None:
            result.append(ServerStatus(service.name, "stopped"))
        elif record.is_elsewhere:
            result.append(ServerStatus(service.name, f"started on {record.place}", record.url))
        elif not record.is_running:
            result.append(ServerStatus(service.name, "dead", record.url))
        else:
            state = "running" if service.is_healthy() else "unhealthy"
            seconds = time.time() - record.started_s
            memory = memory_bytes(record.pid)
            result.append(ServerStatus(service.name, state, record.url, record.pid, seconds, memory))
    return result


def write_env(folder: Path, exports: dict[str, str]) -> Path:
    """Write the `export` lines for `source` to a file that only its owner can read; returns the file."""
    path = folder / ENV_FILE
    write_private(path, "".join(f"{line}\n" for line in export_lines(exports)), os.getpid())
    return path


def export_lines(exports: Mapping[str, str], hidden: Collection[str] = ()) -> list[str]:
    """`export` lines of a shell; values of the variables in `hidden` are replaced by `***`."""
    return [f"export {name}={'***' if name in hidden else shlex.quote(value)}" for name, value in exports.items()]
