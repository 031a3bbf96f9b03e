"""A promotion that fails is counted, the other promotions of its process are too, and kills fall into moves."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Load = Callable[[str], ModuleType]
PACKAGES = {
    "mlflow/tracking.py": "MlflowClient = None",
    "emuedit/tracking/mlflow_client.py": "",
    "emuedit/tracking/registry.py": "def all_versions(): pass",
    "emuedit/tracking/alias_moves.py": """
class Move:
    before = 7
def move_champion(number, who, check):
    if number == 2:
        raise TimeoutError("database is locked")
    return Move()
""",
}
"""Replaces MLflow and the registry."""


@pytest.mark.slow
def test_a_failed_promotion_does_not_drop_those_of_its_process(load_script: Load, tmp_path: Path) -> None:
    promotions = load_script("promotions")
    for name, text in PACKAGES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
        file.write_text(text)
    words = [sys.executable, "-c", promotions.WORKER, "ours", "0", "[1, 2, 3]"]
    # the working folder is first on the import path
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[7, 1], None, [7, 3]]
    assert "database is locked" in run.stderr
    assert promotions.read_moves([run.stdout, "", "[[null, 4]]"]) == [(7, 1), (7, 3), (None, 4)]


@pytest.mark.slow
def test_a_process_is_killed_while_its_move_is_begun(load_script: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from emuedit.tracking import move_tickets

    promotions = load_script("promotions")
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    first, late = (subprocess.Popen(hang, text=True) for _ in range(2))
    ended_at: list[tuple[bool, str]] = []

    def move(number: int, worker: "subprocess.Popen[str]", state: str) -> Any:
        return SimpleNamespace(number=number, state=state, process=f"{worker.pid}:mark")

    tickets = iter([
        [move(1, first, "waiting"), move(2, late, "waiting")],
        [move(1, first, "moving"), move(2, late, "waiting")],
        [move(1, first, "moving"), move(2, late, "waiting")],  # after the kill: it was in the move
        [move(1, first, "done"), move(2, late, "moving")],
        [move(1, first, "done"), move(2, late, "done")],  # it had ended the move before the kill
    ])  # fmt: skip

    def read_all() -> Iterator[Any]:
        moves = next(tickets)
        ended_at.append((first.poll() is None, moves[0].state))
        return iter(moves)

    monkeypatch.setattr(move_tickets, "read_all", read_all)
    monkeypatch.setattr(promotions, "POLL_S", 0)
    assert promotions.kill_in_moves([first, late]) == [1]
    assert (first.returncode, late.returncode) == (-9, -9)
    assert ended_at[:3] == [(True, "waiting"), (True, "moving"), (False, "moving")]
