"""Hashes of files: blake2b of their bytes, of many files in threads, and a memory of hashes between runs.

A hash is reused for a file of the same version: inode, size, mtime and ctime, as in git's index. Two things do not change the
version: a second change within the resolution of the file system's clock, and damage on the disk. So only hashes of files that
had not changed for SETTLED_S seconds are remembered between runs, and what looks for damage uses `hash_all` without a memory.
"""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from emuedit.data.threads import thread_pool

MEMORY_FILE = ".emuedit/file-hashes.sqlite"
"""File of the memory in a project; may be deleted."""
SETTLED_S = 5.0
"""Shortest time in seconds between the last change of a file and the reading of it after which its hash is remembered. Ours."""
MISSING = "missing"
"""In place of the hash of a file that does not exist."""
_DIGEST_BYTES = 8
_CHUNK_BYTES = 2**18
_CACHED_FILES = 4096
_FILES_PER_BATCH = 1024  # in threads at a time, and in one transaction
_LOCK_TIMEOUT_S = 10.0
_TABLE = "CREATE TABLE IF NOT EXISTS hashes (path BLOB PRIMARY KEY, version TEXT, hash TEXT) WITHOUT ROWID"
T = TypeVar("T")

_cache: dict[tuple[str, int], tuple[str, str]] = {}  # (path, digest bytes) -> (version, hash)


class _StoppedError(Exception):
    """Raised in a thread that reads a file, after an error or a stop in the main thread."""


def hash_file(file: Path, digest_bytes: int = _DIGEST_BYTES) -> str:
    """blake2b of a file's bytes, as hex digits; 'missing' if there is none. Cached in this process."""
    return _hash_file(file, digest_bytes, threading.Event())


def hash_all(
    files: Sequence[Path],
    digest_bytes: int = _DIGEST_BYTES,
    memory: "HashMemory | None" = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """`hash_file` of each file, in threads. memory: of hashes of 8 bytes. advance: called with numbers of finished files."""
    hashes: list[str] = []
    for start in range(0, len(files), _FILES_PER_BATCH):
        batch = files[start : start + _FILES_PER_BATCH]
        if memory is not None:
            hashes += memory.hash_batch(batch, advance)
        else:
            for content in _in_threads(lambda file, stop: _hash_file(file, digest_bytes, stop), batch):
                hashes.append(content)
                advance(1)
    return hashes


class HashMemory:
    """Hashes of 8 bytes that are remembered between runs, in a SQLite file below `root`.

    If that cannot be used (a read-only folder, a damaged file), this is printed once, and only this object remembers the hashes.
    Not thread-safe; several processes may use one file.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / MEMORY_FILE
        self._is_usable = True
        self._folders: dict[str, str] = {}  # without links
        self._recent: dict[bytes, tuple[str, str]] = {}  # of files that are not settled, or all: path -> (version, hash)

    def hash_batch(self, files: Sequence[Path], advance: Callable[[int], None] = lambda _: None) -> list[str]:
        """The hash of each file, 'missing' if there is none; files of an unchanged version are not read."""
        keys = [self._key_of(file) for file in files]
        settled_before_ns = time.time_ns() - int(SETTLED_S * 1e9)
        states = [_stat(file) for file in files]
        versions = [_version(state) for state in states]
        earlier = self._look_up(keys)
        hashes = {
            key: content
            for key, version, (stated, content) in zip(keys, versions, earlier, strict=True)
            if version == stated and content
        }
        unread = list({key: row for row, key in enumerate(keys) if key not in hashes}.values())
        advance(len(files) - len(unread))
        settled: list[tuple[bytes, str, str]] = []
        contents = _in_threads(lambda row, stop: _read(files[row], _DIGEST_BYTES, stop), unread)
        for row, content in zip(unread, contents, strict=True):
            hashes[keys[row]] = content
            state = states[row]
            if state is not None and _version(_stat(files[row])) == versions[row]:
                if max(state.st_mtime_ns, state.st_ctime_ns) <= settled_before_ns:
                    settled.append((keys[row], versions[row], content))
                else:
                    self._recent[keys[row]] = versions[row], content
            advance(1)
        self._remember(settled)
        return [hashes[key] for key in keys]

    def _key_of(self, file: Path) -> bytes:
        """Hash of the path without links."""
        folder, name = os.path.split(file)
        if folder not in self._folders:
            if len(self._folders) >= _CACHED_FILES:
                self._folders.clear()
            self._folders[folder] = os.path.realpath(folder)
        path = os.path.realpath(file) if file.is_symlink() else f"{self._folders[folder]}{os.sep}{name}"
        return hashlib.blake2b(os.fsencode(path), digest_size=16).digest()

    def _look_up(self, keys: Sequence[bytes]) -> list[tuple[str, str]]:
        """(version, hash) of each path, empty strings for an unknown one."""
        unknown = ("", "")
        rows = [self._recent.get(key, unknown) for key in keys]
        if not self._file.exists():
            return rows

        def select(database: sqlite3.Connection) -> list[tuple[str, str]]:
            query = "SELECT version, hash FROM hashes WHERE path = ?"
            stored = (row if row[0] else database.execute(query, (key,)).fetchone() for key, row in zip(keys, rows, strict=True))
            return [row or unknown for row in stored]

        return self._use(select) or rows

    def _remember(self, rows: Sequence[tuple[bytes, str, str]]) -> None:
        def insert(database: sqlite3.Connection) -> bool:
            with database:
                database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)
            return True

        if rows and not self._use(insert):
            self._recent.update({key: (version, content) for key, version, content in rows})

    def _use(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of an action on the database; None if it cannot be used, which is printed once."""
        if not self._is_usable:
            return None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_LOCK_TIMEOUT_S)) as database:
                database.execute(_TABLE)
                return action(database)
        except (sqlite3.Error, OSError) as error:
            self._is_usable = False
            print(f"want a memory of the hashes of files, got {self._file}: {error}; all files are read", flush=True)
            return None


def _hash_file(file: Path, digest_bytes: int, stop: threading.Event) -> str:
    """`hash_file`, with the cache of this process."""
    version = _version(_stat(file))
    if not version:
        return MISSING
    cached = _cache.get((str(file), digest_bytes))
    if cached is not None and cached[0] == version:
        return cached[1]
    content = _read(file, digest_bytes, stop)
    if len(_cache) >= _CACHED_FILES:
        _cache.clear()
    _cache[str(file), digest_bytes] = version, content
    return content


def _read(file: Path, digest_bytes: int, stop: threading.Event) -> str:
    digest = hashlib.blake2b(digest_size=digest_bytes)
    try:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                if stop.is_set():
                    raise _StoppedError
                digest.update(chunk)
    except FileNotFoundError:
        return MISSING
    return digest.hexdigest()


def _in_threads(function: Callable[[T, threading.Event], str], items: Sequence[T]) -> Iterator[str]:
    """The results in the order of the items. After an error, or a stop, files that are being read are not read to their end."""
    if not items:
        return
    stop = threading.Event()
    pool = thread_pool()
    try:
        yield from pool.map(lambda item: function(item, stop), items)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _version(state: os.stat_result | None) -> str:
    """Equal for a file that was not changed; empty for a missing one."""
    return f"{state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}" if state is not None else ""
