"""Run commands of stages, kill them during the run, and repeat them until they finish. Linux only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness import command

MAX_REPEATS = 3
"""Maximum number of repetitions; a command that still fails counts as a run with other outputs."""
TIMEOUT_S = 600
_FORK_SERVER = "multiprocessing.forkserver"
"""Part of the command line of Python's fork server and of the processes that it forks."""
ENDING_S = 20
"""Time for processes to end after one of them was killed."""


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """The command of a stage in the workspace `root`, in a separate session; its output is appended to `log`."""
    environment = command.environment_without_mlflow()
    environment |= {"PYTHONPATH": str(command.ROOT), "OMP_NUM_THREADS": "1"}  # avoids thread contention on shared cores
    with (root / "log").open("ab") as log:
        arguments = [sys.executable, "-m", f"emuedit.stages.{stage}"]
        return subprocess.Popen(arguments, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(root: Path, stage: str) -> bool:
    """Run the command; returns whether it succeeded. After TIMEOUT_S all its processes are killed, and it has failed."""
    running = start(root, stage)
    try:
        return running.wait(TIMEOUT_S) == 0
    except subprocess.TimeoutExpired:
        kill_session(running)
        return False


def repeat_until_done(root: Path, stage: str) -> int:
    """Repeat the command until it succeeds, at most MAX_REPEATS times; returns the number of runs."""
    repeats = 1
    while not finish(root, stage) and repeats < MAX_REPEATS:
        repeats += 1
    return repeats


@dataclass(frozen=True)
class SessionProcess:
    """A live process of a session."""

    parent: int
    """Process id of its parent."""
    started: int
    """Start time in ticks since the machine's start."""
    command: list[str]


def session_processes(session: int) -> dict[int, SessionProcess]:
    """The live processes of a session by process id."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from field 3 of proc(5) on
            if int(fields[3]) == session and fields[0] not in "ZX":
                command = (folder / "cmdline").read_bytes().decode().split("\0")
                processes[int(folder.name)] = SessionProcess(int(fields[1]), int(fields[19]), command)
        except (OSError, ValueError, IndexError):  # ended meanwhile
            continue
    return processes


def forked_workers(session: int) -> list[int]:
    """Process ids of the workers of a session, in the order in which they started.

    They are forked by a fork server (`emuedit.processes`), whose command line they have.
    """
    processes = session_processes(session)
    of_server = {pid: process for pid, process in processes.items() if any(_FORK_SERVER in word for word in process.command)}
    workers = {pid: process for pid, process in of_server.items() if process.parent in of_server}
    return sorted(workers, key=lambda pid: (workers[pid].started, pid))


def kill(running: subprocess.Popen[bytes], victim: int) -> int:
    """SIGKILL a process of a running command; returns how many of its session remained after ENDING_S and were killed."""
    os.kill(victim, signal.SIGKILL)
    try:
        running.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return kill_session(running)
    until = time.monotonic() + ENDING_S
    while (left := session_processes(running.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    return kill_session(running) if left else 0


def kill_session(running: subprocess.Popen[bytes]) -> int:
    """SIGKILL all processes of a command's session, and wait until they have ended; returns how many there were."""
    left = session_processes(running.pid)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    running.wait()
    while session_processes(running.pid):
        time.sleep(0.01)
    return len(left)


def file_hashes(folder: Path, pattern: str = "*", ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> SHA-256 for every file in a folder tree, except names in `ignored`."""
    files = (file for file in sorted(folder.rglob(pattern)) if file.is_file() and file.name not in ignored)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
