"""The examples of a preview during training."""

from pathlib import Path
from typing import Any

import pytest

from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, training_preview


def test_a_preview_edits_no_example_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split `train`, and the same examples whatever the seed is."""
    requests: list[tuple[Any, ...]] = []

    def load(source: str, device: str) -> Any:
        assert (source, device) == ("bench.py", "cuda:1")
        return lambda *request: requests.append(request)

    monkeypatch.setattr(benchmark, "load", load)
    training_preview.preview("bench.py", ("local", "remove"), 3, EditSettings(seed=7), tmp_path, "cuda:1")
    assert requests == [("local", "train", 0, 3), ("remove", "train", 0, 3)]
