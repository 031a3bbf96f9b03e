"""Fixtures of the training's tests: tiny base models, a latent cache, and no MLflow."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models.text_to_image import TextToImageModel
from emuedit.training import loss
from emuedit.training.batches import latent_files
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.loss import LossParts
from tests.editor.tiny_pipelines import build_base_model
from tests.training.perfect_network import make_batch
from tests.training.tiny_pairs import make_pair, write_pairs


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics go to stats.jsonl only."""
    monkeypatch.setattr("emuedit.tracking.stats._Mirror._try", lambda mirror: None)


@pytest.fixture(autouse=True)
def no_flop_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings do not count their operations, which takes a quarter of the time of a tiny one; test_flops does."""
    monkeypatch.setattr("emuedit.training.loop.count_flops", lambda *arguments: 1)


@pytest.fixture
def make_base_model() -> Callable[[str], TextToImageModel]:
    """Builds a random base model of one of KINDS, with all parts of a real one."""
    return build_base_model


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latent cache of 60 pairs, encoded by the base model `toy`; not to be changed."""
    root = tmp_path_factory.mktemp("pairs")
    latent_files.build(
        TrainingPairs(*write_pairs(root, [make_pair(n) for n in range(60)])), build_base_model("toy"), root / "cache"
    )
    return root / "cache"


@pytest.fixture
def batch() -> Batch:
    """Four samples, see `make_batch`."""
    return make_batch()


@pytest.fixture
def scheduler() -> Any:
    """A schedule of 100 timesteps for eps-prediction."""
    config = SimpleNamespace(prediction_type="epsilon")
    return SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 100), config=config)


@pytest.fixture
def base_model(make_base_model: Callable[[str], TextToImageModel]) -> TextToImageModel:
    return make_base_model("toy")


@pytest.fixture
def encoded(base_model: TextToImageModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the base model is asked to encode: `pictures`, the shape of every batch, and `texts`, each text."""
    calls: dict[str, Any] = {"pictures": [], "texts": []}
    encode, encode_text = base_model.encode, base_model.encode_text
    monkeypatch.setattr(base_model, "encode", lambda images: (calls["pictures"].append(tuple(images.shape)), encode(images))[1])
    monkeypatch.setattr(base_model, "encode_text", lambda texts: (calls["texts"].extend(texts), encode_text(texts))[1])
    return calls


@pytest.fixture
def change_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, torch.Tensor], torch.Tensor]], None]:
    """Replaces the denoising errors of each call by what a function returns for (number of the call from 1, errors)."""
    loss_parts = loss.loss_parts

    def install(change: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        calls: list[int] = []

        def changed(*arguments: Any, **options: Any) -> LossParts:
            calls.append(1)
            parts = loss_parts(*arguments, **options)
            return parts._replace(denoising=change(len(calls), parts.denoising))

        monkeypatch.setattr(loss, "loss_parts", changed)

    return install
