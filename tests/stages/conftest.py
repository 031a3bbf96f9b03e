"""Fixtures of the stages' tests."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.stages.workspace import Workspace, hide_mlflow

if TYPE_CHECKING:
    from tests.stages.scripted_llm import Reply, ScriptedLLM, UseLLM


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


@pytest.fixture
def use_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "UseLLM":
    """Makes the stage `instructions` ask a ScriptedLLM with this `reply`, and returns it.

    It counts as another LLM than before, whose answers are forgotten, unless `same` is true.
    """
    from emuedit.stages import instructions
    from tests.stages.scripted_llm import ScriptedLLM

    def use(reply: "Reply | None" = None, same: bool = False) -> "ScriptedLLM":
        llm = ScriptedLLM(reply)
        if not same:
            shutil.rmtree(tmp_path / instructions.ANSWERS, ignore_errors=True)
        monkeypatch.setattr(instructions, "load_llm", lambda *spec, **settings: llm)
        return llm

    return use
