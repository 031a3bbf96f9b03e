"""Run commands of stages, kill them during the run, and repeat them until they finish. Linux only."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness import command

MAX_REPEATS = 3
"""Maximum number of repetitions; a command that still fails counts as a run with other outputs."""
TIMEOUT_S = 600
ENDING_S = 20
"""Time for processes to end after one of them was killed."""


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """The command of a stage in the workspace `root`, in a separate session; its output is appended to `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(command.ROOT), "OMP_NUM_THREADS": "1"}  # avoids thread contention on shared cores
    with (root / "log").open("ab") as log:
        arguments = [sys.executable, "-m", f"emuedit.stages.{stage}"]
        return subprocess.Popen(arguments, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(root: Path, stage: str) -> bool:
    """Run the command; returns whether it succeeded."""
    return start(root, stage).wait(TIMEOUT_S) == 0


def repeat_until_done(root: Path, stage: str) -> int:
    """Repeat the command until it succeeds, at most MAX_REPEATS times; returns the number of runs."""
    repeats = 1
    while not finish(root, stage) and repeats < MAX_REPEATS:
        repeats += 1
    return repeats


def session_processes(session: int) -> dict[int, list[str]]:
    """Process id -> command line of every live process of a session, by start time."""
    processes = {}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name)):
        try:
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state not in "ZX":
                processes[int(folder.name)] = (folder / "cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):  # ended meanwhile
            continue
    return processes


def kill(running: subprocess.Popen[bytes], victim: int) -> int:
    """SIGKILL a process of a running command; returns how many of its session remained after ENDING_S and were killed."""
    os.kill(victim, signal.SIGKILL)
    running.wait(TIMEOUT_S)
    until = time.monotonic() + ENDING_S
    while (left := session_processes(running.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return len(left)


def file_hashes(folder: Path, pattern: str = "*", ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> SHA-256 for every file in a folder tree, except names in `ignored`."""
    files = (file for file in sorted(folder.rglob(pattern)) if file.is_file() and file.name not in ignored)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
