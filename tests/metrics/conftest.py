"""Fixtures of the metrics' tests: edits of the toy world with known results."""

from collections.abc import Callable

import pytest

from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark
from tests.editor.conftest import editor_folder, make_sampler

__all__ = ["editor_folder", "make_sampler", "offline", "toy_edits"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not asked whether it has a model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def toy_edits() -> Callable[..., Benchmark]:
    """Builds the first held-out edits of a task."""
    edits = benchmark.load("toyworld/edits/toy_benchmark.py")

    def build(task: str, n: int = 6) -> Benchmark:
        return edits(task, "held_out", 0, n)

    return build
