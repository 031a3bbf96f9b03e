"""The weights that are shipped do what they are for, loaded as the stations load them: by the names in params.yaml.

A few pictures each; the held-out figures are measured by `python -m toyworld.training.measure`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from emuedit.config import World, load, locate
from emuedit.models import clip, depth, detector, dino, image_tensors, segmenter, text_to_image
from toyworld import reading
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions, noun
from toyworld.scenes.palette import COLOURS
from toyworld.scenes.scene import Scenes, numbers, scenes

ROOT = Path(__file__).parents[2]
MODELS = ("base_model", "detector", "segmenter", "clip", "dino", "depth")


@pytest.fixture(scope="module")
def world() -> dict[str, str]:
    named = load(World, "world", ROOT / "params.yaml")
    return {name: locate(str(getattr(named, name)), ROOT) for name in MODELS}


@pytest.fixture(scope="module")
def some() -> Scenes:
    """Held-out scenes with one object, in clear weather and no style."""
    pool = scenes(numbers("held_out", 0, 400))
    return pool[np.flatnonzero((pool.count == 1) & (pool.condition == 0) & (pool.style == 0))[:16]]


@pytest.fixture(scope="module")
def known(some: Scenes) -> render.Truth:
    return render.truth(some)


@pytest.fixture(scope="module")
def x(known: render.Truth) -> torch.Tensor:
    return image_tensors.from_uint8(known.images)


def test_the_detector_finds_what_is_asked_for(world: dict[str, str], some: Scenes, known: render.Truth, x: torch.Tensor) -> None:
    asked = [[f"{COLOURS[some.colour[n, 0]]} {noun(some, n, 0)}"] for n in range(len(some))]
    found = detector.load(world["detector"]).detect(x, asked, 0.01, nms_iou=0.5)
    best = torch.stack([one.boxes_px[0] if len(one) else torch.zeros(4) for one in found])
    overlap = box_iou(best, torch.from_numpy(known.boxes[:, 0])).diag()
    assert (overlap > 0.5).float().mean() > 0.8


def test_the_segmenter_cuts_out_what_is_boxed(world: dict[str, str], known: render.Truth, x: torch.Tensor) -> None:
    found = segmenter.load(world["segmenter"]).segment(x, [torch.from_numpy(box[:1]) for box in known.boxes])
    masks, truth = np.stack([one.masks[0].numpy() for one in found]), known.masks[:, 0]
    iou = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert iou.mean() > 0.8


def test_clip_knows_a_caption_from_another(world: dict[str, str], some: Scenes, x: torch.Tensor) -> None:
    judge = clip.load(world["clip"])
    likeness = judge.embed_texts(all_captions(some)) @ judge.embed_images(x).T
    assert (likeness.argmax(1) == torch.arange(len(some))).float().mean() > 0.6


def test_dino_knows_a_scene_under_other_noise(world: dict[str, str], some: Scenes, x: torch.Tensor) -> None:
    judge = dino.load(world["dino"])
    moved = replace(some, tile_x=(some.tile_x + 40) % 128)
    likeness = judge.embed_images(x) @ judge.embed_images(image_tensors.from_uint8(render.images(moved))).T
    assert likeness.diag().mean() > likeness[~torch.eye(len(some), dtype=torch.bool)].mean() + 0.1


def test_depth_sees_what_is_near(world: dict[str, str], known: render.Truth, x: torch.Tensor) -> None:
    seen = depth.load(world["depth"]).depth(x).numpy()
    inside, outside = seen[known.masks[:, 0]].mean(), seen[~known.masks[:, 0]].mean()
    assert inside > outside + 0.3


def test_the_painter_paints_what_the_oracle_can_read(world: dict[str, str], some: Scenes) -> None:
    painted = text_to_image.load(world["base_model"]).generate(all_captions(some), list(range(len(some))), steps=12, guidance=3.0)
    seen = reading.faithfulness(image_tensors.to_uint8(painted), some)
    assert seen["background"] > 0.8
    assert seen["condition"] > 0.8
    assert seen["colour"] > 0.6
