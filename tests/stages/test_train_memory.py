"""What the stage `train` leaves on the GPU when the pairs are encoded."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.stages import train
from emuedit.training import training_checks
from emuedit.training.batches import latent_files
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.starting_point import Encoders
from tests.stages.workspace import load_params
from tests.training.tiny_pairs import make_pair, write_pairs


class TrainingBeginsError(Exception):
    """Raised in place of a training."""


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow")
def test_memory_of_the_encoders_is_given_back_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes train, one of them on the GPU on which this one encoded."""
    write_pairs(tmp_path, [make_pair(0, (64, 64))])
    emptied: list[list[str]] = []
    models: dict[str, weakref.ref[torch.nn.Module]] = {}

    def begin_training(*arguments: Any) -> Any:
        raise TrainingBeginsError

    def remember(pairs: TrainingPairs, encoders: Encoders, *arguments: Any, **options: Any) -> None:
        models.update({name: weakref.ref(getattr(encoders.pipeline, name)) for name in ("vae", "text_encoder", "unet")})

    def empty_cache() -> None:
        emptied.append([name for name, model in models.items() if model() is not None])

    monkeypatch.setattr(latent_files, "build", remember)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(train, "LatentCache", begin_training)
    monkeypatch.setattr(training_checks, "check_memory", lambda *arguments: [])
    params = load_params(train.TrainParams, "train", start="base_model", device="cpu", dtype="float32", processes=1, preview=None)
    with pytest.raises(TrainingBeginsError):
        train.run(params, tmp_path)
    assert len(models) == 3
    assert emptied == [[]]
