"""Run a command so that no process of it outlives whoever asked for it.

    python flows/process_guard.py --parent $$ [--timeout 60] -- dvc repro --single-item captions

DVC, stopped by a signal, leaves the process of its stage behind: that goes on writing, and the next run starts a second one
beside it. So the command runs in a session of its own, and the guard ends all of it when the flow dies (`kill -9` included),
when it gets a signal, when the time is over and when the command itself has ended.

On Linux the kernel tells the guard of the flow's death (PR_SET_PDEATHSIG), tells the command of the guard's death, and hands the
guard every process whose own parent has ended (PR_SET_CHILD_SUBREAPER), also those that moved to another session. Elsewhere the
guard polls for its parent every `_POLL_S` seconds and ends the process group. This file imports nothing of the project, so that
it starts in milliseconds. See docs/decisions/0008-process-guard.md.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

TIMED_OUT = 124  # exit status when the time is over, as of timeout(1)
GUARD_ENV = "EMUEDIT_GUARD"
"""Environment variable of every process under a guard: the guard's process id."""
_POLL_S = 0.1
_GRACE_S = 1.5  # between the signal that asks and SIGKILL
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def command(arguments: Sequence[str], timeout_s: float | None = None) -> list[str]:
    """The command line that runs `arguments` under a guard of this process."""
    limit = [] if timeout_s is None else ["--timeout", str(timeout_s)]
    return [sys.executable, "-S", "-E", str(Path(__file__).resolve()), "--parent", str(os.getpid()), *limit, "--", *arguments]


def adopt_orphans() -> None:
    """On Linux, become the parent of every process below this one whose own parent ends. Elsewhere, do nothing."""
    _prctl(_CHILD_SUBREAPER, 1)


def die_with_parent(number: int) -> None:
    """On Linux, have the kernel send signal `number` to this process when the thread that started it ends."""
    _prctl(_PDEATHSIG, number)


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`; on Linux only, elsewhere none."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # not Linux, or the process has just ended
        return []
    return [*children, *(process for child in children for process in descendants(child))]


def end_descendants(grace_s: float = 0.0) -> None:
    """Wait `grace_s` for the processes below this one to end, then kill them. All of them only after `adopt_orphans`."""
    start = time.monotonic()
    while time.monotonic() - start < grace_s + _GRACE_S:
        _collect_ended()
        remaining = descendants(os.getpid())
        if not remaining:
            return
        if time.monotonic() - start >= grace_s:
            _kill(remaining)
        time.sleep(0.01)


def end_guarded(guard: int) -> None:
    """Kill what a guard left that was itself killed: every process that has its number in the environment. Linux only."""
    mark = f"{GUARD_ENV}={guard}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of another user, or ended by now
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                _kill([int(folder.name)])


def main() -> int:
    """Run the command; the guard exits with its status, or by the signal that ended it."""
    parser = argparse.ArgumentParser(prog="process_guard", description="Run a command; nothing of it outlives the parent.")
    parser.add_argument("--parent", type=int, required=True, help="process whose death ends the command")
    parser.add_argument("--timeout", type=float, help="seconds after which the command is ended, with exit status 124")
    parser.add_argument("arguments", nargs="+", metavar="command")
    options = parser.parse_args()
    received: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: received.append(number))
    die_with_parent(signal.SIGTERM)
    adopt_orphans()
    status = _run(options.arguments, options.parent, options.timeout, received)
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status  # not reached, unless the signal is blocked


def _run(arguments: Sequence[str], parent: int, timeout_s: float | None, received: Sequence[int]) -> int:
    """Exit status of the command, negative for a signal, after every process that it started has ended."""
    if os.getppid() != parent:  # the parent died before die_with_parent was in force
        return -signal.SIGTERM
    environment = {**os.environ, GUARD_ENV: str(os.getpid())}
    try:
        child = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, start_new_session=True, env=environment, preexec_fn=_prepare_child
        )
    except OSError as error:
        print(f"process_guard: cannot start {arguments[0]}: {error.strerror}", file=sys.stderr)
        return 127  # as of a shell
    start, status, stop = time.monotonic(), None, None
    while status is None and stop is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(_POLL_S)
        if received:
            stop = received[0]
        elif os.getppid() != parent:
            stop = signal.SIGTERM
        elif timeout_s is not None and time.monotonic() - start > timeout_s and status is None:
            limit = f"process_guard: ended after {timeout_s:g} s, its time limit: {' '.join(arguments)}"
            print(limit, file=sys.stderr, flush=True)
            stop, status = signal.SIGTERM, TIMED_OUT
    if stop is not None:
        _signal_group(child.pid, signal.SIGINT)  # the signal on which DVC releases its locks
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
    _end(child)
    return -stop if status is None and stop is not None else int(status or 0)


def _prepare_child() -> None:
    """In the child, before the command starts: react to signals (under nohup they are ignored), and die with the guard."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the command's process group and every process that the kernel handed to this one."""
    _signal_group(child.pid, signal.SIGKILL)
    end_descendants()
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # collected by end_descendants


def _collect_ended() -> None:
    """Take the exit status of children that have ended, which would otherwise stay as zombies."""
    with contextlib.suppress(ChildProcessError):  # no children
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill(processes: Collection[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # ended; on macOS also: only zombies left
        os.killpg(group, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            print(f"process_guard: prctl({option}) refused: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
