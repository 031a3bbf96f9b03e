"""What the stage `train` leaves on the GPU when the pairs are encoded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.stages import train
from emuedit.training import latent_files, training_checks
from tests.stages.workspace import load_params
from tests.training.tiny_pairs import make_pair, write_pairs


class TrainingBeginsError(Exception):
    """Raised in place of a training."""


@pytest.mark.usefixtures("no_mlflow")
def test_memory_of_the_encoders_is_given_back_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes train, one of them on the GPU on which this one encoded."""
    write_pairs(tmp_path, [make_pair(0, (64, 64))])
    events: list[str] = []
    encoders: list[Any] = []

    def begin_training(*arguments: Any) -> Any:
        raise TrainingBeginsError

    monkeypatch.setattr(latent_files, "build", lambda *arguments, **options: encoders.append(type(arguments[1]).__name__))
    monkeypatch.setattr(train.gc, "collect", lambda: events.append("collected"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("emptied"))
    monkeypatch.setattr(train, "LatentCache", begin_training)
    monkeypatch.setattr(training_checks, "check_memory", lambda *arguments: [])
    params = load_params(train.TrainParams, "train", start="base_model", device="cpu", dtype="float32", processes=1, preview=None)
    with pytest.raises(TrainingBeginsError):
        train.run(params, tmp_path)
    assert events == ["collected", "emptied"]
    assert encoders == ["Encoders"]
