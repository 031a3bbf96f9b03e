"""Allow one retrain or `refresh-data` per folder, by a lock on `.emuedit/retrain.lock`; others wait.

The kernel releases the lock when the process exits for any reason, also on another machine that shares the folder (flock, over
NFS too). The record in the file only names the holder. A folder on a file system without flock is an error; there, DVC works
only with its `core.hardlink_lock`, which this lock has no counterpart of.
"""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

FILE = Path(".emuedit") / "retrain.lock"
_POLL_S = 1.0


class LockError(RuntimeError):
    """Raised for a folder that cannot be written, or whose files cannot be locked."""


@dataclass(frozen=True)
class LockOwner:
    """The holder of a lock."""

    pid: int
    started_s: float
    """Start of the process, in seconds since 1970."""
    host: str
    flow: str = "retrain"
    """Name of the flow."""

    @classmethod
    def this_process(cls, flow: str = "retrain") -> "LockOwner":
        """The record of this process."""
        return cls(os.getpid(), psutil.Process().create_time(), socket.gethostname(), flow)


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
        yield has_waited
    finally:
        _write(descriptor, "")
        with contextlib.suppress(OSError):  # otherwise a forked copy of the descriptor would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def check(folder: Path) -> None:
    """Raise LockError if files in a folder cannot be locked. In such a `.dvc/tmp`, DVC would wait without end for its
    lock, unless its `core.hardlink_lock` is set."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        _flock(stream.fileno(), folder)


class _Attempt:
    """Tries to lock a file. `other`: the holder at the last try, if known."""

    def __init__(self, path: Path, this: LockOwner) -> None:
        self.path, self.this = path, this
        self.other: LockOwner | None = None

    def lock(self) -> int | None:
        """A descriptor of the locked file; None if another retrain holds the lock. The file is opened again each time, because a
        network file system may show writes of other machines only then."""
        descriptor = _opened(self.path)
        try:
            if self._is_locked(descriptor):
                _write(descriptor, json.dumps(asdict(self.this)) + "\n")
                return descriptor
            self.other = _read(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_locked(self, descriptor: int) -> bool:
        """Whether the descriptor got the lock of the file that now has the path."""
        if not _flock(descriptor, self.path.parent):
            return False
        with contextlib.suppress(FileNotFoundError):  # the file was deleted meanwhile: a new file has its own lock
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        return False


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


def _flock(descriptor: int, folder: Path) -> bool:
    """Lock a file of this folder; False if another descriptor has the lock. Raises LockError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LockError(
            f"want a folder whose files can be locked (flock), got {folder.resolve()} ({error.strerror}); use a file system with "
            "locks, such as a local disk: the retrain's lock needs flock, and DVC too unless core.hardlink_lock is set"
        ) from error
    return True


def _read(descriptor: int) -> LockOwner | None:
    """The record; None for an empty or damaged file."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
