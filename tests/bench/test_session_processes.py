"""The processes of a command that benchmarks kill and measure."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
from emuedit.training.distributed import run_distributed
from tests.training.light_processes import wait_in_process
if __name__ == "__main__":
    run_distributed(2, "cpu", wait_in_process, sys.argv[1])
"""
ALLOCATE = "import time; data = bytearray(b'1') * 300_000_000; time.sleep(60)"


def harness(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module(f"harness.{name}")


@contextlib.contextmanager
def session(*command: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in a session of its own, of which no process remains."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True, text=True)
    try:
        yield running
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "the condition was not met in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_training_processes_are_listed_by_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are children of Python's fork server; a kill of a rank must not hit the command or the server."""
    killing = harness("killing", monkeypatch)
    script, ranks = tmp_path / "train.py", tmp_path / "ranks"
    script.write_text(TRAIN)
    ranks.mkdir()
    with session(str(script), str(ranks)) as running:
        wait_for(lambda: sum(bool(file.read_text()) for file in ranks.iterdir()) == 2)
        by_rank = {int(file.read_text()): int(file.name) for file in ranks.iterdir()}
        assert killing.forked_workers(running.pid) == [by_rank[0], by_rank[1]]
        assert len(killing.session_processes(running.pid)) > 3, "also the command, the server and the resource tracker"
        os.kill(by_rank[0], signal.SIGKILL)
        wait_for(lambda: not killing.forked_workers(running.pid))


@pytest.mark.slow
def test_memory_is_that_of_all_processes_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a process whose parent is not the command."""
    session_memory = harness("session_memory", monkeypatch)
    spawn = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ALLOCATE!r}]); subprocess.run(['sleep', '60'])"
    with session("-c", spawn) as running, session_memory.SessionMemory(running) as memory:
        wait_for(lambda: memory.peak_gib > 0.28)
    assert memory.peak_gib < 1
