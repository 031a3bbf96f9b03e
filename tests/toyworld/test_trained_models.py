import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emuedit import models
from emuedit.models import image_tensors
from toyworld.scenes import render
from toyworld.scenes.scene import generate_scenes, scene_numbers
from toyworld.training import __main__ as command
from toyworld.training import (
    train_clip,
    train_depth,
    train_detector,
    train_dino,
    train_segmenter,
)
from toyworld.training.training_run import Recipe

N_SCENES = 60
MODULES = {
    "detector": train_detector,
    "segmenter": train_segmenter,
    "clip": train_clip,
    "dino": train_dino,
    "depth": train_depth,
}


def tiny(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=2, batch=3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every model, trained for two steps and published as the command publishes it."""
    scratch, out = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("weights")
    for name, module in MODULES.items():
        folder = module.run(scratch / name, tiny(module.RECIPE), N_SCENES)  # type: ignore[attr-defined]
        command.publish(folder, out / name)
    return {name: out / name for name in MODULES}


@pytest.fixture
def x() -> Tensor:
    return image_tensors.from_uint8(render.images(generate_scenes(scene_numbers("held_out", 0, 3))))


@pytest.mark.slow
def test_the_published_detector_loads_and_detects(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import detector as adapter

    two_phrases, one_phrase, no_phrase = adapter.load(str(published["detector"])).detect(
        x, [["red star", "card with the letter A"], ["person"], []], 0.0
    )
    assert len(two_phrases) == 64
    assert set(two_phrases.phrase.tolist()) <= {0, 1}
    assert (one_phrase.phrase == 0).all()
    assert len(no_phrase) == 0


@pytest.mark.slow
def test_the_published_segmenter_loads_and_segments(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import segmenter as adapter

    box = torch.tensor([[10.0, 12.0, 40.0, 50.0]])
    results = adapter.load(str(published["segmenter"])).segment(x, [box, box.repeat(2, 1), box[:0]])
    assert [tuple(result.masks.shape) for result in results] == [(1, 64, 64), (2, 64, 64), (0, 64, 64)]


def test_batched_decoding_of_prompts_equals_sam_image_by_image(x: Tensor) -> None:
    torch.manual_seed(0)
    model = train_segmenter.build().eval()
    boxes = torch.tensor([[10.0, 12.0, 40.0, 50.0], [1.0, 2.0, 30.0, 20.0]])
    images = (x[:2] + 1) * 127.5
    with torch.no_grad():
        grids = model.image_encoder(model.preprocess(images))
        prompt_tokens = train_segmenter.embed_prompts(model, boxes, torch.zeros(2, 1, 2), torch.tensor([False, False]))
        logits, predicted_iou = train_segmenter.decode(model, grids, prompt_tokens)
        records = [{"image": images[i], "original_size": (64, 64), "boxes": boxes[i : i + 1]} for i in range(2)]
        expected = model(records, multimask_output=False)
    expected_logits = torch.cat([result["low_res_logits"] for result in expected])
    expected_iou = torch.cat([result["iou_predictions"] for result in expected])
    torch.testing.assert_close(logits[:, :1], expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted_iou[:, :1], expected_iou, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_the_published_scorers_load_and_embed(name: str, published: dict[str, Path], x: Tensor) -> None:
    from importlib import import_module

    scorer = import_module(f"{models.__name__}.{name}").load(str(published[name]))
    torch.testing.assert_close(scorer.embed_images(x).norm(dim=-1), torch.ones(3))
    if name == "clip":
        assert scorer.embed_texts(["a star", "a very long word " * 40]).shape == (2, 128)


@pytest.mark.slow
def test_the_published_depth_model_loads_and_predicts(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import depth as adapter

    disparity = adapter.load(str(published["depth"])).depth(x)
    assert disparity.shape == (3, 64, 64)
    assert disparity.min() >= 0
    assert disparity.max() <= 1


def test_weights_are_published_in_float16(published: dict[str, Path]) -> None:
    files = [file for folder in published.values() for file in folder.rglob("*.safetensors")]
    assert len(files) == len(MODULES)
    for file in files:
        assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}
    assert sum(file.stat().st_size for file in files) < 14e6


def test_weights_that_overflow_float16_are_not_published(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "model").mkdir()
    save_file({"w": torch.tensor([1e6])}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(OverflowError, match="float16"):
        command.publish(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_folders_contain_the_config(published: dict[str, Path]) -> None:
    config = json.loads((published["segmenter"] / "config.json").read_text())
    assert config["image_size"] == 64
