"""Two retrains in one folder: the second waits and says so; the lock of a dead one counts for nothing."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows import retrain_lock
from flows.retrain_lock import FILE, LockError, LockOwner, only_one

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from flows import retrain_lock
with retrain_lock.only_one(Path(), print):
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


def test_a_second_retrain_waits_for_the_first_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.05)
    lines: list[str] = []
    with start_owner(tmp_path) as owner:

        def say(text: str) -> None:
            lines.append(text)
            assert owner.stdin
            threading.Timer(0.3, owner.stdin.close).start()

        with only_one(tmp_path, say) as has_waited:
            assert has_waited
            assert owner.wait(10) == 0
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    (line,) = lines
    assert line.startswith(f"another retrain works in this folder (process {owner.pid}, since ")
    assert (tmp_path / FILE).read_text() == ""


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}', json.dumps({"pid": 2**22 - 1, "started_s": 1.0, "host": ""})])
def test_a_lock_without_a_living_process_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(content.replace('"host": ""', f'"host": "{LockOwner.this_process().host}"'))
    with only_one(tmp_path, pytest.fail) as has_waited:
        assert not has_waited


def test_a_killed_retrain_and_another_process_of_its_number_do_not_lock(tmp_path: Path) -> None:
    with start_owner(tmp_path) as owner:
        owner.kill()
    with only_one(tmp_path, pytest.fail):
        pass
    reused = dataclasses.replace(LockOwner.this_process(), started_s=1.0)  # a process of an earlier start of the machine
    assert not reused.is_alive()


@pytest.mark.slow
def test_the_lock_of_another_machine_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).parent.mkdir()
    other = dataclasses.asdict(dataclasses.replace(LockOwner.this_process(), host="elsewhere"))
    (tmp_path / FILE).write_text(json.dumps(other))

    def say(text: str) -> None:
        assert "of elsewhere; delete .emuedit/retrain.lock if it is gone" in text
        (tmp_path / FILE).unlink()

    with only_one(tmp_path, say) as has_waited:
        assert has_waited


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".emuedit").write_text("a file")
    with pytest.raises(LockError, match="want a folder that can be written"), only_one(tmp_path, pytest.fail):
        pass
