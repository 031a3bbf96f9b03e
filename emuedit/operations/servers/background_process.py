"""Background processes that outlive the command that started them, with a log, a record and an orderly stop.

A record contains the process id and a mark of the process's start, since the same id may later belong to another program, and
the host, since machines and containers may share the folder of the records.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from emuedit.data.atomic_file import replacing
from emuedit.data.text_hash import hex_hash
from emuedit.process_identity import boot_id, pid_space, start_mark

MAX_LOG_BYTES = 10_000_000
"""Size above which a log is renamed at a start: many days of access lines of a server, and an editor still opens it quickly."""


@dataclass(frozen=True)
class ProcessRecord:
    """A started process: name, id, mark of its start, address, start in seconds since the epoch, and settings."""

    name: str
    pid: int
    start_mark: str
    url: str
    started_s: float
    settings: str
    optional: Mapping[str, str] = field(default_factory=dict)
    """Optional variables that were set -> hash of their values."""
    host: str = ""
    """Name of the machine or container; empty, as in records of earlier versions: this one."""
    pid_space: str = ""
    """Where the process id is valid, see `process_identity.pid_space`."""

    def write(self, folder: Path) -> None:
        """Write `<folder>/<name>.pid`, as JSON."""
        with replacing(_record_path(folder, self.name)) as partial:
            partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @property
    def is_running(self) -> bool:
        """Whether exactly this process runs, not a zombie or another process with the same id."""
        return start_mark(self.pid) == self.start_mark != ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was started on another machine, or in another container of this one, so that its state is unknown here.

        A record of this machine from before its last start is not elsewhere: the process is dead. Nor is one from before this
        machine was renamed, if the process runs.
        """
        here = pid_space()
        if not self.host or self.pid_space == here or self.is_running:
            return False
        is_other_container = boot_id(self.pid_space) == boot_id(here) != ""
        return self.host != socket.gethostname() or is_other_container

    @property
    def place(self) -> str:
        """The host, for messages about a record that is elsewhere."""
        return f"another container of {self.host}" if self.host == socket.gethostname() else self.host

    def has_settings_of(self, command: "BackgroundCommand") -> bool:
        """Whether `command` would start it in the same way now; optional variables are compared if they are set now."""
        return self.settings == command.settings and self.optional.items() >= command.optional_settings.items()


@dataclass(frozen=True)
class BackgroundCommand:
    """What to start: the command line, its full environment, and the user to run it as (None: the user of this process).

    `needs`: environment variables whose change requires a restart. `optional`: the same, but only for variables that are set; if
    they are not set, as in another shell, a running process is not restarted.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    url: str
    user: str | None = None
    needs: Sequence[str] = ()
    optional: Collection[str] = ()

    @property
    def settings(self) -> str:
        """Hash of the command line and the variables in `needs`."""
        return _hash(json.dumps([list(self.arguments), [self.environment.get(name) for name in self.needs]]))

    @property
    def optional_settings(self) -> dict[str, str]:
        """Optional variables that are set -> hash of their values, which may be secret."""
        return {name: _hash(self.environment[name]) for name in self.optional if self.environment.get(name)}


def _hash(content: str) -> str:
    return hex_hash(content.encode())


def read_record(folder: Path, name: str) -> ProcessRecord | None:
    """The record of a process; None if there is none, or if it is invalid."""
    try:
        return ProcessRecord(**json.loads(_record_path(folder, name).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # an invalid record counts as missing
        return None


def remove_record(folder: Path, name: str) -> None:
    """Delete the record of a process."""
    _record_path(folder, name).unlink(missing_ok=True)


def log_path(folder: Path, name: str) -> Path:
    """File with the output of a process."""
    return folder / "logs" / f"{name}.log"


def rename_large_log(log: Path) -> None:
    """Give a log that exceeds MAX_LOG_BYTES the suffix `.1`, in place of an earlier such file; a start then begins a new log."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def start_process(command: BackgroundCommand, folder: Path, cwd: Path) -> ProcessRecord:
    """Start a process in its own session, append its output to its log, and write its record. Raises OSError."""
    log = log_path(folder, command.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    rename_large_log(log)
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603  a command line that this package builds
            list(command.arguments),
            env=dict(command.environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=command.user,
            group=command.user,
            extra_groups=[] if command.user else None,
        )
    process.returncode = 0  # it outlives this object, which would otherwise warn when it is garbage-collected
    record = ProcessRecord(
        command.name,
        process.pid,
        start_mark(process.pid),
        command.url,
        time.time(),
        command.settings,
        command.optional_settings,
        socket.gethostname(),
        pid_space(),
    )
    record.write(folder)
    return record


def end_process(record: ProcessRecord, grace_s: float, request: int = signal.SIGTERM) -> bool:
    """Ask a process to exit, wait, then kill it and its remaining children. True if it exited by itself.

    No signal is sent to a process other than the recorded one.
    """
    if not record.is_running:
        return True
    processes = _tree(record.pid)  # before it exits: later its children cannot be found
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, request)
    until = time.monotonic() + grace_s
    while (is_running := record.is_running) and time.monotonic() < until:
        _collect(record.pid)
        time.sleep(0.05)
    _kill({*processes, *_tree(record.pid), *_session(record)})
    _collect(record.pid)
    return not is_running


def end_leftovers(record: ProcessRecord) -> int:
    """Kill the children of a dead process in its session, which would occupy its port; returns their number."""
    if record.is_running:
        return 0
    processes = _session(record)
    _kill(processes)
    return len(processes)


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; shared pages count for each."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _session(record: ProcessRecord) -> set[psutil.Process]:
    """Processes in the session led by a recorded process.

    An id is not reused while a session has it, so a process with this id and another mark means that none is left.
    """
    boot = boot_id(record.pid_space)  # without one, the clock decides, which may have been set since
    was_before_boot = boot != boot_id(pid_space()) if boot else record.started_s < psutil.boot_time()
    if was_before_boot or start_mark(record.pid) not in ("", record.start_mark):
        return set()
    members = set()
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == record.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.add(process)
    return members


def _kill(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5.0)


def _collect(pid: int) -> None:
    """Reap a child of this process, which would stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _record_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"
