"""Allow one retrain or `refresh-data` per folder, by a lock on `.emuedit/retrain.lock`; others wait.

The kernel releases the lock when the process exits for any reason, also on another machine that shares the folder (flock, over
NFS too). The record in the file only names the holder. The holder also touches the file regularly: on a file system without
locks, the record of a file that was not touched for a minute is ignored.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from emuedit.failures import NO_LOCKS
from emuedit.process_identity import UnchangedTimer

FILE = Path(".emuedit") / "retrain.lock"
_POLL_S = 1.0
_TOUCH_S, _DEAD_S = 10.0, 60.0
"""Interval between touches of the file; time without a touch after which the holder counts as dead if there are no locks."""


class LockError(RuntimeError):
    """Raised if no lock can be written in the folder."""


@dataclass(frozen=True)
class LockOwner:
    """The holder of a lock."""

    pid: int
    started_s: float
    """Start of the process, in seconds since 1970."""
    host: str
    lock_id: str = ""
    """Distinguishes two retrains of one process."""
    flow: str = "retrain"
    """Name of the flow."""

    @classmethod
    def this_process(cls, flow: str = "retrain") -> "LockOwner":
        """The record of this process."""
        return cls(os.getpid(), psutil.Process().create_time(), socket.gethostname(), uuid4().hex, flow)


@contextlib.contextmanager
def exclusive(root: Path, flow: str = "retrain") -> Iterator[bool]:
    """Wait until no other flow with this lock runs in the folder, and hold it during the block. Yields whether it waited.

    The holder is printed once. Raises LockError.
    """
    attempt, has_waited = _Attempt(root / FILE, LockOwner.this_process(flow)), False
    while (descriptor := attempt.lock()) is None:
        if not has_waited:
            other = attempt.other.flow if attempt.other else "retrain"
            place = f"in this folder{_describe(attempt.other, attempt.this.host)}"
            print(f"== another {other} is running {place}; waiting until it ends", flush=True)
            has_waited = True
        time.sleep(_POLL_S)
    try:
        with _touched(descriptor, attempt.this):
            yield has_waited
    finally:
        if _read(descriptor) == attempt.this:
            _write(descriptor, "")
        with contextlib.suppress(OSError):  # otherwise a forked copy of the descriptor would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class _Attempt:
    """Tries to lock a file. `other`: the holder at the last try, if known."""

    def __init__(self, path: Path, this: LockOwner) -> None:
        self.path, self.this = path, this
        self.other: LockOwner | None = None
        self._unchanged = UnchangedTimer()

    def lock(self) -> int | None:
        """A descriptor of the locked file; None if another retrain holds the lock. The file is opened again each time, because a
        network file system may show writes of other machines only then."""
        descriptor = _opened(self.path)
        try:
            is_locked = self._has_kernel_lock(descriptor)
            is_dead = is_locked is None and self._is_dead(_read(descriptor), os.fstat(descriptor).st_mtime_ns)
            if is_locked or is_dead:
                _write(descriptor, json.dumps(asdict(self.this)) + "\n")
                if is_locked or self._stays_ours(descriptor):
                    return descriptor
            self.other = _read(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _has_kernel_lock(self, descriptor: int) -> bool | None:
        """Whether the descriptor got the lock; None if the file system has no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise LockError(f"want a folder whose files can be locked, got {self.path.parent} ({error.strerror})") from error
            return None
        with contextlib.suppress(FileNotFoundError):  # the file was deleted meanwhile: a new file has its own lock
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        return False

    def _is_dead(self, owner: LockOwner | None, touched_ns: int) -> bool:
        """Whether the owner is gone. Measured with this machine's clock only, as others may differ."""
        if owner is None:
            return True
        return self._unchanged.seconds(self.path, (owner, touched_ns)) >= _DEAD_S

    def _stays_ours(self, descriptor: int) -> bool:
        """Whether our record remains: if two write it at the same time, the later one wins."""
        time.sleep(_POLL_S)
        return _read(descriptor) == self.this


@contextlib.contextmanager
def _touched(descriptor: int, this: LockOwner) -> Iterator[None]:
    """Touch the file during the block, as a heartbeat for others."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(_TOUCH_S):
            with contextlib.suppress(OSError):  # the next touch is enough
                if _read(descriptor) == this:
                    os.utime(descriptor)

    thread = threading.Thread(target=touch, name="retrain lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(other: LockOwner | None, host: str) -> str:
    if other is None:
        return ""
    since = time.strftime("%H:%M", time.localtime(other.started_s))
    return f" (process {other.pid}{'' if other.host == host else f' of {other.host}'}, since {since})"


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LockError(f"want a writable folder, got {path.parent.resolve()} ({error.strerror})") from error


def _read(descriptor: int) -> LockOwner | None:
    """The record; None for an empty or damaged file."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
