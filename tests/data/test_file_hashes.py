"""Hashes of files that are remembered between runs, and when they must not be."""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.data import file_hashes, threads
from emuedit.data.file_hashes import MEMORY_FILE, MISSING, HashMemory, hash_all, hash_file


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as unchanged for long as soon as they are written."""
    monkeypatch.setattr(file_hashes, "SETTLED_S", -3600.0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes are read."""
    names, lock, read = list[str](), threading.Lock(), file_hashes._read

    def count(file: Path, digest_bytes: int, stop: threading.Event) -> str:
        with lock:
            names.append(file.name)
        return read(file, digest_bytes, stop)

    monkeypatch.setattr(file_hashes, "_read", count)
    return names


def write_files(folder: Path, n: int = 5) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(n)]
    for file in files:
        file.write_text(f"content {file.name}")
    return files


def test_hashes_are_in_the_order_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_FILES_PER_BATCH", 2)
    files = [*write_files(tmp_path), tmp_path / "absent"]
    amounts: list[int] = []
    expected = [hash_file(file) for file in files]
    assert expected[-1] == MISSING
    assert hash_all(files, advance=amounts.append) == expected
    assert hash_all(files, memory=HashMemory(tmp_path), advance=amounts.append) == expected
    assert sum(amounts) == 2 * len(files)
    assert [len(content) for content in hash_all(files[:1], digest_bytes=32)] == [64]


@pytest.mark.usefixtures("settled")
def test_a_second_run_reads_only_files_that_changed(tmp_path: Path, opened: list[str]) -> None:
    files = write_files(tmp_path)
    expected = hash_all(files, memory=HashMemory(tmp_path))
    assert sorted(opened) == [file.name for file in files]
    opened.clear()
    assert hash_all(files, memory=HashMemory(tmp_path)) == expected
    assert not opened
    state = files[1].stat()
    files[1].write_text("Content 1.png")  # of equal size
    os.utime(files[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    (files[0].parent / "new").write_text("content of another file")
    (files[0].parent / "new").replace(files[3])
    hashes = hash_all(files, memory=HashMemory(tmp_path))
    assert sorted(opened) == ["1.png", "3.png"], "the change time and the inode differ"
    assert hashes == [hash_file(file) for file in files]


@pytest.mark.usefixtures("settled")
def test_a_file_is_the_same_by_any_path(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dep is an absolute path, its images are relative ones, or lead there through a link."""
    monkeypatch.chdir(tmp_path)
    files = write_files(tmp_path, 2)
    (tmp_path / "link").symlink_to(tmp_path)
    memory = HashMemory(tmp_path)
    expected = hash_all(files, memory=memory)
    opened.clear()
    assert hash_all([Path("0.png"), Path("link/1.png")], memory=memory) == expected
    assert not opened


def test_a_file_that_changed_a_moment_ago_is_read_again_by_the_next_run(tmp_path: Path, opened: list[str]) -> None:
    """It may change again within the resolution of the file system's clock."""
    files, memory = write_files(tmp_path, 1), HashMemory(tmp_path)
    hash_all(files, memory=memory)
    hash_all(files, memory=memory)
    assert len(opened) == 1, "this run has the hash"
    hash_all(files, memory=HashMemory(tmp_path))
    assert len(opened) == 2


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = write_files(tmp_path, 1)
    read = file_hashes._read

    def change_afterwards(*arguments: object) -> str:
        content = read(*arguments)  # type: ignore[arg-type]
        file.write_text("another content")
        return content

    memory = HashMemory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(file_hashes, "_read", change_afterwards)
        hash_all([file], memory=memory)
    assert hash_all([file], memory=memory) == hash_all([file], memory=HashMemory(tmp_path)) == [hash_file(file)]


@pytest.mark.usefixtures("settled")
def test_a_memory_that_cannot_be_used_is_reported_once(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path, 3)
    (tmp_path / MEMORY_FILE).parent.mkdir()
    (tmp_path / MEMORY_FILE).write_text("no database" * 100)
    memory = HashMemory(tmp_path)
    for _ in range(2):
        assert hash_all(files, memory=memory) == [hash_file(file) for file in files]
    assert capsys.readouterr().out.count("file is not a database; all files are read") == 1
    opened.clear()
    hash_all(files, memory=memory)
    assert not opened, "the object still has them"


@pytest.mark.usefixtures("settled")
def test_two_processes_may_remember_at_the_same_time(tmp_path: Path) -> None:
    files = write_files(tmp_path, 2)
    first, second = HashMemory(tmp_path), HashMemory(tmp_path)
    assert first.hash_batch(files[:1]) + second.hash_batch(files[1:]) == [hash_file(file) for file in files]
    with sqlite3.connect(tmp_path / MEMORY_FILE) as database:
        assert database.execute("SELECT count(*) FROM hashes").fetchone() == (2,)


@pytest.mark.parametrize("remember", [True, False])
def test_an_error_in_a_thread_is_raised(tmp_path: Path, remember: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path)

    def fail(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file_hashes, "_read", fail)
    with pytest.raises(OSError, match="Input/output"):
        hash_all(files, memory=HashMemory(tmp_path) if remember else None)


@pytest.mark.slow
def test_a_stop_does_not_wait_for_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    monkeypatch.setattr(file_hashes, "_CHUNK_BYTES", 1)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text("a")
    large.write_bytes(bytes(2**26))  # a byte at a time: more than a minute

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    advance: Callable[[int], None] = stop
    with pytest.raises(KeyboardInterrupt):
        hash_all([small, large], advance=advance)
