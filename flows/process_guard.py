"""Runs a command so that nothing of it outlives whoever asked for it.

    python flows/process_guard.py --parent $$ [--timeout 60] -- dvc repro --single-item captions

DVC, stopped by a signal, leaves the process of its stage behind: that goes on writing, and the next run starts a second
one beside it. So the command runs in a session of its own, and the guard ends all of it when the flow dies (`kill -9`
included), when a signal says so, when the time is over and when the command itself is gone. Stages know nothing of this.

On Linux the kernel tells the guard of the flow's death (PR_SET_PDEATHSIG) and hands it every process that its parent left
(PR_SET_CHILD_SUBREAPER), also those that moved to another session. Elsewhere the guard looks for its parent every
`_LOOK_S` seconds and ends the process group. This file imports nothing of ours: it starts in milliseconds.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TIMED_OUT = 124  # exit status when the time is over, as of timeout(1)
_LOOK_S = 0.1
_GRACE_S = 1.5  # between the polite signal and SIGKILL
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def command(arguments: Sequence[str], timeout_s: float | None = None) -> list[str]:
    """The command line that runs `arguments` under a guard of this process."""
    limit = [] if timeout_s is None else ["--timeout", str(timeout_s)]
    return [sys.executable, "-S", "-E", str(Path(__file__).resolve()), "--parent", str(os.getpid()), *limit, "--", *arguments]


def main() -> int:
    """Run the command; its exit status comes back, and so does the signal that ended it."""
    parser = argparse.ArgumentParser(prog="guard", description="Run a command; nothing of it outlives the parent.")
    parser.add_argument("--parent", type=int, required=True, help="process whose death ends the command")
    parser.add_argument("--timeout", type=float, help="seconds after which the command is ended, with exit status 124")
    parser.add_argument("arguments", nargs="+", metavar="command")
    asked = parser.parse_args()
    heard: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: heard.append(number))
    _ask_the_kernel()
    status = _run(asked.arguments, asked.parent, asked.timeout, heard)
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status  # not reached, unless the signal is blocked


def _run(arguments: Sequence[str], parent: int, timeout_s: float | None, heard: Sequence[int]) -> int:
    """Exit status of the command, negative for a signal, after all that it started is gone."""
    if os.getppid() != parent:  # died before the kernel was asked to tell
        return -signal.SIGTERM
    try:
        child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"guard: cannot start {arguments[0]}: {error.strerror}", file=sys.stderr)
        return 127  # as of a shell
    began, status, polite = time.monotonic(), None, None
    while status is None and polite is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(_LOOK_S)
        if heard:
            polite = heard[0]
        elif os.getppid() != parent:
            polite = signal.SIGTERM
        elif timeout_s is not None and time.monotonic() - began > timeout_s and status is None:
            print(f"guard: ended after {timeout_s:g} s, its time limit: {' '.join(arguments)}", file=sys.stderr, flush=True)
            polite, status = signal.SIGTERM, TIMED_OUT
    if polite is not None:
        _signal(child.pid, polite)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
    _end(child)
    return -polite if status is None and polite is not None else int(status or 0)


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the command's process group and for every process that came to us when its own parent was gone."""
    until = time.monotonic() + _GRACE_S
    while time.monotonic() < until:
        _signal(child.pid, signal.SIGKILL)
        left = _descendants(os.getpid())
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # none left to bury
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            break
        time.sleep(0.01)
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # buried above


def _descendants(pid: int) -> list[int]:
    """Processes below `pid`, as far as the system tells."""
    try:
        below = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # no Linux, or just gone
        return []
    return [*below, *(one for child in below for one in _descendants(child))]


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; on macOS also: only zombies left
        os.killpg(group, number)


def _ask_the_kernel() -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for option, value in ((_PDEATHSIG, signal.SIGTERM), (_CHILD_SUBREAPER, 1)):
            if libc.prctl(option, value, 0, 0, 0) != 0:
                print(f"guard: prctl({option}) refused: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
