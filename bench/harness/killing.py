"""Commands of stages that are killed at a moment of their run, and repeated to their end. Linux only."""

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
"""A repeated command that fails more often counts as a run with other outputs."""
TIMEOUT_S = 600
ENDING_S = 20
"""How long processes may take to end after one of them was killed."""


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """The command of a stage in the workspace `root`, in a session of its own; what it says is appended to `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(command.ROOT), "OMP_NUM_THREADS": "1"}  # two threads wait for each other on shared cores
    with (root / "log").open("ab") as log:
        arguments = [sys.executable, "-m", f"emuedit.stages.{stage}"]
        return subprocess.Popen(arguments, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(root: Path, stage: str) -> bool:
    """Run the command to its end; whether it succeeded."""
    return start(root, stage).wait(TIMEOUT_S) == 0


def repeat_until_done(root: Path, stage: str) -> int:
    """Repeat the command until it succeeds, MAX_REPEATS times at most; how often it ran."""
    repeats = 1
    while not finish(root, stage) and repeats < MAX_REPEATS:
        repeats += 1
    return repeats


def session_processes(session: int) -> dict[int, list[str]]:
    """Process id -> command line of every live process of a session, in the order of their starts."""
    processes = {}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name)):
        try:
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state not in "ZX":
                processes[int(folder.name)] = (folder / "cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):  # ended by now
            continue
    return processes


def kill(running: subprocess.Popen[bytes], victim: int) -> int:
    """SIGKILL for one process of a running command; how many of its session were left ENDING_S later, and were then ended."""
    os.kill(victim, signal.SIGKILL)
    running.wait(TIMEOUT_S)
    until = time.monotonic() + ENDING_S
    while (left := session_processes(running.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return len(left)


def file_hashes(folder: Path, pattern: str = "*", ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, by name, except for files called as one of `ignored`."""
    files = (file for file in sorted(folder.rglob(pattern)) if file.is_file() and file.name not in ignored)
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
