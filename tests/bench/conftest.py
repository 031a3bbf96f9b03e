import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module that every benchmark shares; it writes results to a temporary folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("harness.command")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.fixture
def load_script(command: ModuleType) -> Callable[[str], ModuleType]:
    """Imports a benchmark or a module of the harness by its name; results go to a temporary folder."""
    return importlib.import_module


@pytest.fixture
def stage_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that measures single stages."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness.stage_runs")
