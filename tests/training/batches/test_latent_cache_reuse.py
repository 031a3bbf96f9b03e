"""What the stage `train` takes from the latent cache of an earlier run, and what it encodes again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit import config
from emuedit.models.text_to_image import TextToImageModel
from emuedit.stages import train
from emuedit.training.batches.latent_cache import LatentCache
from tests.editor.tiny_pipelines import build_pipeline
from tests.stages.workspace import skip_estimates
from tests.training.tiny_pairs import make_pair, write_pairs

ROOT = Path(__file__).parents[3]


class StoppedError(Exception):
    """Raised in place of the training, after the pairs were encoded."""


@pytest.fixture(scope="module")
def base_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two base models."""
    folder = tmp_path_factory.mktemp("base-models")
    for kind in ("toy", "sd15"):
        build_pipeline(kind).save_pretrained(folder / kind)
    return folder


@pytest.fixture
def encode_for_training(base_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, int]]:
    """Runs the stage `train` up to the training; returns the name of its latent cache and the number of encoded batches."""
    write_pairs(tmp_path, [make_pair(n) for n in range(6)])
    shutil.copytree(base_models, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(train, "gc", SimpleNamespace(collect=int))  # takes longer than all else
    skip_estimates(monkeypatch)
    params = config.load(train.TrainParams, "train", ROOT / "params.yaml").model_copy(update={"start": train.BASE_MODEL})
    n_encoded: list[int] = []
    encode = TextToImageModel.encode
    monkeypatch.setattr(TextToImageModel, "encode", lambda model, images: (n_encoded.append(1), encode(model, images))[1])

    def stop(*arguments: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(train.TrainJob, "train", stop)

    def run(base_model: str = "toy", **changes: Any) -> tuple[str, int]:
        n_encoded.clear()
        world = params.world.model_copy(update={"base_model": str(tmp_path / base_model)})
        settings = {"world": world, "device": "cpu", "dtype": "float32", "processes": 1, "held_out_share": 0.0}
        with pytest.raises(StoppedError):
            train.run(params.model_copy(update=settings | changes), tmp_path)
        (folder,) = (tmp_path / "scratch" / "latents").iterdir()
        assert len(LatentCache(folder, 0.0).train) == 5
        return folder.name, len(n_encoded)

    return run


@pytest.mark.slow
def test_latents_are_reused_for_other_params_of_the_training(encode_for_training: Callable[..., tuple[str, int]]) -> None:
    name, n_encoded = encode_for_training()
    assert n_encoded == 2, "one batch for each of two shards"
    assert encode_for_training() == (name, 0)
    assert encode_for_training(lr=1e-5, steps=7, batch_size=2, seed=3) == (name, 0)


@pytest.mark.slow
def test_latents_of_another_number_format_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]],
) -> None:
    name, _ = encode_for_training()
    other_name, n_encoded = encode_for_training(dtype="bfloat16")
    assert other_name != name
    assert n_encoded == 2


@pytest.mark.slow
def test_latents_of_another_base_model_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]],
) -> None:
    name, _ = encode_for_training()
    other_name, n_encoded = encode_for_training("sd15")
    assert other_name != name
    assert n_encoded == 2


@pytest.mark.slow
def test_latents_of_other_weights_under_the_same_name_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    name, _ = encode_for_training()
    torch.manual_seed(1)
    build_pipeline("toy").save_pretrained(tmp_path / "toy")
    other_name, n_encoded = encode_for_training()
    assert other_name != name
    assert n_encoded == 2


@pytest.mark.slow
def test_latents_of_other_code_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    """Code of the workspace comes before the installed one, as in a checkout in which a file was edited."""
    paths = ["emuedit/models/vae_latents.py", "emuedit/training/batches/latent_files.py", "emuedit/data/png.py"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        for file in (ROOT / path).parent.glob("*.py"):
            (tmp_path / path).with_name(file.name).write_bytes(file.read_bytes())
    name, _ = encode_for_training()
    assert encode_for_training() == (name, 0)
    names = {name}
    for n_edited, path in enumerate(paths, start=1):
        (tmp_path / path).write_text((ROOT / path).read_text() + "# edited\n")
        other_name, n_encoded = encode_for_training()
        assert n_encoded == 2, path
        names.add(other_name)
        assert len(names) == 1 + n_edited, path


@pytest.mark.slow
def test_latents_of_other_pairs_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    encode_for_training()
    write_pairs(tmp_path, [make_pair(n) for n in range(6, 12)])
    _, n_encoded = encode_for_training()
    assert n_encoded == 2
