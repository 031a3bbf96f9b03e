"""The shipped weights do their tasks. They are loaded as the stages load them: by the names in params.yaml.

Each test uses a few images. `python -m toyworld.training.measure` measures all metrics on held-out scenes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from emuedit.config import World, load, resolve_path
from emuedit.models import clip, depth, detector, dino, image_tensors, segmenter, text_to_image
from toyworld import reading
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, slot_noun
from toyworld.scenes.palette import COLOURS
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers

ROOT = Path(__file__).parents[2]
MODELS = ("base_model", "detector", "segmenter", "clip", "dino", "depth")


@pytest.fixture(scope="module")
def world() -> dict[str, str]:
    """Model name -> folder of its weights, from the section `world` of params.yaml."""
    params = load(World, "world", ROOT / "params.yaml")
    return {name: resolve_path(str(getattr(params, name)), ROOT) for name in MODELS}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Sixteen held-out scenes with one object, in clear weather and no style."""
    candidates = generate_scenes(scene_numbers("held_out", 0, 400))
    is_plain = (candidates.count == 1) & (candidates.condition == 0) & (candidates.style == 0)
    return candidates[np.flatnonzero(is_plain)[:16]]


@pytest.fixture(scope="module")
def truth(scenes: Scenes) -> render.GroundTruth:
    return render.truth(scenes)


@pytest.fixture(scope="module")
def x(truth: render.GroundTruth) -> torch.Tensor:
    return image_tensors.from_uint8(truth.images)


@pytest.mark.slow
def test_the_detector_finds_the_object_of_a_phrase(
    world: dict[str, str], scenes: Scenes, truth: render.GroundTruth, x: torch.Tensor
) -> None:
    phrases = [[f"{COLOURS[scenes.colour[n, 0]]} {slot_noun(scenes, n, 0)}"] for n in range(len(scenes))]
    detections = detector.load(world["detector"]).detect(x, phrases, 0.01, nms_iou=0.5)
    best = torch.stack([result.boxes_px[0] if len(result) else torch.zeros(4) for result in detections])
    overlap = box_iou(best, torch.from_numpy(truth.boxes[:, 0])).diag()
    assert (overlap > 0.5).float().mean() > 0.8


@pytest.mark.slow
def test_the_segmenter_predicts_the_mask_of_the_object_in_a_box(
    world: dict[str, str], truth: render.GroundTruth, x: torch.Tensor
) -> None:
    results = segmenter.load(world["segmenter"]).segment(x, [torch.from_numpy(box[:1]) for box in truth.boxes])
    masks, true_masks = np.stack([result.masks[0].numpy() for result in results]), truth.masks[:, 0]
    iou = (masks & true_masks).sum((1, 2)) / (masks | true_masks).sum((1, 2))
    assert iou.mean() > 0.8


def test_clip_finds_the_caption_of_an_image(world: dict[str, str], scenes: Scenes, x: torch.Tensor) -> None:
    scorer = clip.load(world["clip"])
    similarity = scorer.embed_texts(all_captions(scenes)) @ scorer.embed_images(x).T
    assert (similarity.argmax(1) == torch.arange(len(scenes))).float().mean() > 0.6


def test_dino_recognises_a_scene_with_other_background_noise(world: dict[str, str], scenes: Scenes, x: torch.Tensor) -> None:
    scorer = dino.load(world["dino"])
    moved = replace(scenes, tile_x=(scenes.tile_x + 40) % 128)
    similarity = scorer.embed_images(x) @ scorer.embed_images(image_tensors.from_uint8(render.images(moved))).T
    assert similarity.diag().mean() > similarity[~torch.eye(len(scenes), dtype=torch.bool)].mean() + 0.1


@pytest.mark.slow
def test_the_depth_of_an_object_is_nearer_than_the_background(
    world: dict[str, str], truth: render.GroundTruth, x: torch.Tensor
) -> None:
    disparity = depth.load(world["depth"]).depth(x).numpy()
    inside, outside = disparity[truth.masks[:, 0]].mean(), disparity[~truth.masks[:, 0]].mean()
    assert inside > outside + 0.3


@pytest.mark.slow
def test_the_base_model_generates_what_its_caption_says(world: dict[str, str], scenes: Scenes) -> None:
    base_model = text_to_image.load(world["base_model"])
    scenes = scenes[:10]
    generated = base_model.generate(all_captions(scenes), list(range(len(scenes))), steps=8, guidance_scale=3.0)
    shares = reading.faithfulness(image_tensors.to_uint8(generated), scenes)
    assert shares["background"] > 0.8
    assert shares["condition"] > 0.8
    assert shares["colour"] > 0.6
