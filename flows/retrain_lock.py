"""One retrain at a time in a folder: `.emuedit/retrain.lock` names the process that works there, and a second one waits.

The record has the process id and the time at which that process was started, which no later process has both. So the lock of a
killed retrain, or of one before a restart of the machine, counts for nothing.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

FILE = Path(".emuedit") / "retrain.lock"
_POLL_S = 1.0
_SAME_S = 0.05  # start times are known to 10 ms


class LockError(RuntimeError):
    """Raised for a folder in which no lock can be written."""


@dataclass(frozen=True)
class LockOwner:
    """Who works in a folder."""

    pid: int
    started_s: float
    """When the process was started, in seconds since 1970."""
    host: str

    @classmethod
    def this_process(cls) -> "LockOwner":
        """The record of this process."""
        return cls(os.getpid(), psutil.Process().create_time(), socket.gethostname())

    def is_alive(self) -> bool:
        """Whether its process runs. That of another machine is taken to run, as nothing here can tell."""
        if self.host != socket.gethostname():
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started_s) < _SAME_S
        except psutil.NoSuchProcess:
            return False


@contextlib.contextmanager
def only_one(root: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Wait until no other retrain works in the folder, and keep others waiting during the block. Gives whether it waited.

    Who is waited for is said once. Raises LockError.
    """
    this, has_waited = LockOwner.this_process(), False
    while (other := _try_to_own(root / FILE, this)) is not None:
        if not has_waited:
            since = time.strftime("%H:%M", time.localtime(other.started_s))
            elsewhere = "" if other.host == this.host else f" of {other.host}; delete {FILE} if it is gone"
            say(f"another retrain works in this folder (process {other.pid}, since {since}{elsewhere}); waiting for it")
            has_waited = True
        time.sleep(_POLL_S)
    try:
        yield has_waited
    finally:
        _give_back(root / FILE, this)


def _try_to_own(path: Path, this: LockOwner) -> LockOwner | None:
    """Write `this` into the lock, unless it names another process that runs, which is returned."""
    with _opened(path) as descriptor:
        owner = _read(descriptor)
        if owner is not None and owner != this and owner.is_alive():
            return owner
        _write(descriptor, json.dumps(asdict(this)) + "\n")
        return None


def _give_back(path: Path, this: LockOwner) -> None:
    with _opened(path) as descriptor:
        if _read(descriptor) == this:
            _write(descriptor, "")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The lock file, which nobody else reads or writes during the block."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LockError(f"want a folder that can be written, got {path.parent.resolve()} ({error.strerror})") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks: two that start at once may both go on
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> LockOwner | None:
    """The owner; None for an empty or damaged file."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
