"""A promotion that fails is counted, and the other promotions of its process are too."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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
