"""One retrain at a time in a folder: it has a lock on `.emuedit/retrain.lock`, and a second one waits.

The kernel frees the lock when the process ends, however it ends, also that of another machine that shares the folder (flock, over
NFS too). The record in the file only says who is waited for. The retrain also touches the file again and again: on a file system
without such locks, the record of a file that stays untouched for a minute counts for nothing.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import psutil

FILE = Path(".emuedit") / "retrain.lock"
_POLL_S = 1.0
_TOUCH_S, _DEAD_S = 10.0, 60.0
"""How often the file is touched; after this time without that its process counts as dead, where the kernel has no locks."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class LockError(RuntimeError):
    """Raised for a folder in which no lock can be written."""


@dataclass(frozen=True)
class LockOwner:
    """Who works in a folder."""

    pid: int
    started_s: float
    """When the process was started, in seconds since 1970."""
    host: str
    lock_id: str = ""
    """Differs for two retrains of one process."""

    @classmethod
    def this_process(cls) -> "LockOwner":
        """The record of this process."""
        return cls(os.getpid(), psutil.Process().create_time(), socket.gethostname(), uuid4().hex)


@contextlib.contextmanager
def exclusive(root: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Wait until no other retrain works in the folder, and keep others waiting during the block. Gives whether it waited.

    Who is waited for is said once. Raises LockError.
    """
    attempt, has_waited = _Attempt(root / FILE, LockOwner.this_process()), False
    while (descriptor := attempt.lock()) is None:
        if not has_waited:
            say(f"another retrain works in this folder{_describe(attempt.other, attempt.this.host)}; waiting for it")
            has_waited = True
        time.sleep(_POLL_S)
    try:
        with _touched(descriptor, attempt.this):
            yield has_waited
    finally:
        if _read(descriptor) == attempt.this:
            _write(descriptor, "")
        with contextlib.suppress(OSError):  # what a fork has of the descriptor would keep the lock otherwise
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class _Attempt:
    """Tries to get the lock of a file. `other`: who had it at the last try, if that is known."""

    def __init__(self, path: Path, this: LockOwner) -> None:
        self.path, self.this = path, this
        self.other: LockOwner | None = None
        self._seen: tuple[LockOwner, int] | None = None
        self._unchanged_since_s = 0.0

    def lock(self) -> int | None:
        """A descriptor of the file, which has the lock; None while another retrain has it. The file is opened anew each time,
        since a network file system shows only then what other machines wrote."""
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
        """Whether the descriptor got the lock; None where the file system has no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise LockError(f"want a folder whose files can be locked, got {self.path.parent} ({error.strerror})") from error
            return None
        with contextlib.suppress(FileNotFoundError):  # somebody deleted the file meanwhile: the next one has another lock
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        return False

    def _is_dead(self, owner: LockOwner | None, touched_ns: int) -> bool:
        """Whether nobody has the record. Time is measured here only, as another machine's clock may differ."""
        if owner is None:
            return True
        if self._seen != (owner, touched_ns):
            self._seen, self._unchanged_since_s = (owner, touched_ns), time.monotonic()
        return time.monotonic() - self._unchanged_since_s >= _DEAD_S

    def _stays_ours(self, descriptor: int) -> bool:
        """Of two that write the record at the same time, the later one has it."""
        time.sleep(_POLL_S)
        return _read(descriptor) == self.this


@contextlib.contextmanager
def _touched(descriptor: int, this: LockOwner) -> Iterator[None]:
    """Touch the file during the block, so that others see that its process runs."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(_TOUCH_S):
            with contextlib.suppress(OSError):  # the next one counts
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
        raise LockError(f"want a folder that can be written, got {path.parent.resolve()} ({error.strerror})") from error


def _read(descriptor: int) -> LockOwner | None:
    """The record; None for an empty or damaged file."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
