"""Run a command, and kill all its processes when the caller dies.

    python flows/process_guard.py --parent $$ [--timeout 60] -- dvc repro --single-item captions

If a signal stops DVC, the process of its stage survives and keeps writing, and the next run starts a second one. So the guard
kills all of them when the flow dies (even by `kill -9`), on a signal, at the time limit, and after the command has exited.

On Linux the kernel signals the guard when the flow dies (PR_SET_PDEATHSIG), signals the command when the guard dies, and makes
the guard the parent of all orphaned descendants (PR_SET_CHILD_SUBREAPER), including those in another session. Elsewhere the guard
polls for its parent every `_POLL_S` seconds and kills the process group. This file imports nothing of the project, so that it
starts in milliseconds. See docs/decisions/0008-process-guard.md.
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

TIMED_OUT = 124  # exit status at the time limit, as of timeout(1)
GUARD_ENV = "EMUEDIT_GUARD"
"""Environment variable of every process under a guard: the guard's process id."""
_POLL_S = 0.1
_GRACE_S = 1.5  # between the polite signal and SIGKILL
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def command(arguments: Sequence[str], timeout_s: float | None = None) -> list[str]:
    """The command line that runs `arguments` under a guard of this process."""
    limit = [] if timeout_s is None else ["--timeout", str(timeout_s)]
    return [sys.executable, "-S", "-E", str(Path(__file__).resolve()), "--parent", str(os.getpid()), *limit, "--", *arguments]


def adopt_orphans() -> None:
    """On Linux, become the parent of all orphaned descendants of this process. Elsewhere, do nothing."""
    _prctl(_CHILD_SUBREAPER, 1)


def die_with_parent(number: int) -> None:
    """On Linux, have the kernel send signal `number` to this process when the thread that started it exits."""
    _prctl(_PDEATHSIG, number)


def descendants(pid: int) -> list[int]:
    """Process ids of the descendants of `pid`; empty on other systems than Linux."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # not Linux, or the process has just exited
        return []
    return [*children, *(process for child in children for process in descendants(child))]


def end_descendants(grace_s: float = 0.0) -> None:
    """Wait `grace_s` for the descendants of this process to exit, then kill them. Includes orphans after `adopt_orphans`."""
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
    """Kill the processes of a killed guard: those with its id in their environment. Linux only."""
    mark = f"{GUARD_ENV}={guard}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of another user, or already exited
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                _kill([int(folder.name)])


def main() -> int:
    """Run the command; the guard exits with the command's status, or by the same signal."""
    parser = argparse.ArgumentParser(
        prog="process_guard", description="Run a command, and kill all its processes when the parent dies."
    )
    parser.add_argument("--parent", type=int, required=True, help="process on whose death the command is killed")
    parser.add_argument("--timeout", type=float, help="time limit in seconds; then the exit status is 124")
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
    """Exit status of the command, negative for a signal, after all its processes have exited."""
    if os.getppid() != parent:  # the parent died before die_with_parent took effect
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
            limit = f"process_guard: stopped at the time limit of {timeout_s:g} s: {' '.join(arguments)}"
            print(limit, file=sys.stderr, flush=True)
            stop, status = signal.SIGTERM, TIMED_OUT
    if stop is not None:
        _signal_group(child.pid, signal.SIGINT)  # the signal on which DVC releases its locks
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
    _end(child)
    return -stop if status is None and stop is not None else int(status or 0)


def _prepare_child() -> None:
    """In the child, before the command starts: reset signals that nohup ignores, and die with the guard."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the command's process group and all adopted processes."""
    _signal_group(child.pid, signal.SIGKILL)
    end_descendants()
    if child.returncode is None:
        child.returncode = -signal.SIGKILL  # reaped by end_descendants


def _collect_ended() -> None:
    """Reap children that have exited, which would otherwise stay as zombies."""
    with contextlib.suppress(ChildProcessError):  # no children
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill(processes: Collection[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # exited; on macOS also if only zombies are left
        os.killpg(group, number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(option, value, 0, 0, 0) != 0:
            print(f"process_guard: prctl({option}) failed: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
