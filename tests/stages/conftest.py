"""Fixtures of the stages' tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.workspace import Workspace, hide_mlflow


@pytest.fixture
def make_workspace(tmp_path: Path) -> Iterator[Callable[..., Workspace]]:
    """Makes a folder of this name with changed sections of params.yaml; its processes end with the test."""
    workspaces: list[Workspace] = []

    def make(name: str, **sections: dict[str, Any]) -> Workspace:
        workspaces.append(Workspace(tmp_path / name, sections))
        return workspaces[-1]

    yield make
    for process in (process for workspace in workspaces for process in workspace.processes):
        process.kill()


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Metrics go to stats.jsonl only."""
    hide_mlflow(monkeypatch, tmp_path_factory.mktemp("no-mlflow"))
