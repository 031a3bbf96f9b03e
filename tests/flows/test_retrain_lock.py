"""Two retrains in one folder: the second waits and says so; that of a dead one, of whatever machine, counts for nothing."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import retrain_lock
from flows.retrain_lock import FILE, LockError, LockOwner, exclusive

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from flows import retrain_lock
with retrain_lock.exclusive(Path()):
    print("in", flush=True)
    sys.stdin.read()
"""


def start_owner(folder: Path) -> "subprocess.Popen[str]":
    """A process that has the lock until its input ends."""
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout
    assert owner.stdout.readline() == "in\n"
    return owner


def call_at_wait(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], object]) -> None:
    """Call a function with the line that a waiting retrain prints."""
    monkeypatch.setattr(retrain_lock, "print", lambda line, flush: act(line), raising=False)


@pytest.mark.slow
def test_a_second_retrain_waits_for_the_first_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.05)
    lines: list[str] = []
    with start_owner(tmp_path) as owner:

        def end_owner(line: str) -> None:
            lines.append(line)
            assert owner.stdin
            threading.Timer(0.3, owner.stdin.close).start()

        call_at_wait(monkeypatch, end_owner)
        with exclusive(tmp_path) as has_waited:
            assert has_waited
            assert owner.wait(10) == 0
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    (line,) = lines
    assert line.startswith(f"== another retrain is running in this folder (process {owner.pid}, since ")
    assert (tmp_path / FILE).read_text() == ""


def test_the_flow_that_has_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.05)
    lines: list[str] = []
    has_lock, may_end = threading.Event(), threading.Event()

    def refresh() -> None:
        with exclusive(tmp_path, "refresh-data"):
            has_lock.set()
            may_end.wait(10)

    def end_owner(line: str) -> None:
        lines.append(line)
        may_end.set()

    call_at_wait(monkeypatch, end_owner)
    owner = threading.Thread(target=refresh)
    owner.start()
    has_lock.wait(10)
    with exclusive(tmp_path) as has_waited:
        assert has_waited
    owner.join()
    assert lines[0].startswith(f"== another refresh-data is running in this folder (process {os.getpid()}, since ")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}', json.dumps({"pid": 2**22 - 1, "started_s": 1.0, "host": ""})])
def test_a_lock_without_a_living_process_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(content.replace('"host": ""', f'"host": "{LockOwner.this_process().host}"'))
    with exclusive(tmp_path) as has_waited:
        assert not has_waited


def test_a_killed_retrain_does_not_lock(tmp_path: Path) -> None:
    with start_owner(tmp_path) as owner:
        owner.kill()
    with exclusive(tmp_path) as has_waited:
        assert not has_waited


def write_record_of_another_machine(folder: Path) -> None:
    (folder / FILE).parent.mkdir()
    other = dataclasses.replace(LockOwner.this_process(), host="elsewhere")
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(other)))


def test_the_lock_of_a_machine_that_is_gone_counts_for_nothing(tmp_path: Path) -> None:
    write_record_of_another_machine(tmp_path)  # such as of a pod that was killed: the next one has another host name
    with exclusive(tmp_path) as has_waited:
        assert not has_waited


def test_two_retrains_of_one_process_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.01)
    events: list[str] = []
    waits = threading.Event()

    def retrain_again() -> None:
        with exclusive(tmp_path) as has_waited:
            events.append(f"second, waited: {has_waited}")

    call_at_wait(monkeypatch, lambda line: waits.set())
    second = threading.Thread(target=retrain_again)
    with exclusive(tmp_path):
        second.start()
        assert waits.wait(10)
        events.append("first")
    second.join(10)
    assert events == ["first", "second, waited: True"]


def test_a_retrain_that_waits_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    call_at_wait(monkeypatch, lambda line: signal.setitimer(signal.ITIMER_REAL, 0.1))
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with exclusive(tmp_path):
            start = time.monotonic()
            with pytest.raises(Interruption), exclusive(tmp_path):
                pytest.fail("two retrains at once")
            assert time.monotonic() - start < 0.9
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_a_lock_file_that_was_deleted_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.01)
    opened, paths = retrain_lock._opened, [tmp_path / FILE]

    def open_and_lose(path: Path) -> int:
        descriptor = opened(path)
        if paths:
            paths.pop().unlink()
        return descriptor

    monkeypatch.setattr(retrain_lock, "_opened", open_and_lose)
    with exclusive(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_folder_whose_files_cannot_be_locked_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    place = re.escape(f"{tmp_path / FILE.parent} ({os.strerror(number)}); use a file system")
    error = pytest.raises(LockError, match=rf"want a folder whose files can be locked \(flock\), got {place}")
    with error as caught, exclusive(tmp_path):
        pass
    assert "and DVC too unless core.hardlink_lock is set" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".emuedit").write_text("a file")
    with pytest.raises(LockError, match="want a writable folder"), exclusive(tmp_path):
        pass
