from dataclasses import replace

import numpy as np
import pytest

from toyworld.edits import exact_targets
from toyworld.reading import toy_annotators
from toyworld.scenes import render
from toyworld.scenes.palette import PERSON
from toyworld.scenes.scene import Scenes, numbers, scenes

NOBODY = [""] * 40


@pytest.fixture(scope="module")
def some() -> Scenes:
    """Photos in clear weather with one or two objects, two of them with a figure."""
    pool = scenes(numbers("held_out", 0, 600))
    plain = (pool.condition == 0) & (pool.style == 0) & (pool.count > 0) & (pool.count < 3)
    person = (pool.kind == PERSON).any(1)
    return pool[np.concatenate([np.flatnonzero(plain & person)[:2], np.flatnonzero(plain & ~person)[:4]])]


def ask(task: str, images: np.ndarray, words: list[str] | None = None, **given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(images)
    boxes = given.get("boxes", np.zeros((n, 4), np.float32))
    masks = given.get("masks", np.zeros((n, 64, 64), bool))
    return toy_annotators.annotate(task, images, words or [""] * n, boxes, masks)


@pytest.mark.parametrize("task", toy_annotators.MAPS)
def test_maps_of_renders_are_the_exact_maps(some: Scenes, task: str) -> None:
    truth = render.truth(some)
    want = {
        "depth": exact_targets.depth(truth), "normal": exact_targets.normal(truth), "sketch": exact_targets.sketch(truth),
        "segmap": exact_targets.segmap(some, truth), "pose": exact_targets.pose(some),
    }[task]  # fmt: skip
    got, fine = ask(task, truth.images)
    assert fine.tolist() == ([True, True, False, False, False, False] if task == "pose" else [True] * 6)
    off = np.abs(got.astype(float) - want).mean((1, 2, 3))[fine] / 255
    assert off.max() < 0.03


def test_what_cannot_be_read_is_refused(some: Scenes) -> None:
    truth = render.truth(some[:3])
    spoilt = truth.images.copy()
    spoilt[truth.owner >= 0] = (255, 0, 255)  # a colour that nothing has
    spoilt[:, ::3] //= 4
    _, fine = ask("depth", spoilt)
    assert not fine.any()


def test_detect_and_segment_draw_the_exact_targets_from_exact_finds(some: Scenes) -> None:
    truth = render.truth(some)
    slots = truth.masks.any((2, 3)).argmax(1)
    rows = np.arange(len(some))
    got, fine = ask("detect", truth.images, boxes=truth.boxes[rows, slots])
    assert fine.all()
    np.testing.assert_array_equal(got, exact_targets.detect(truth, slots))
    got, fine = ask("segment", truth.images, masks=truth.masks[rows, slots])
    assert fine.all()
    np.testing.assert_array_equal(got, exact_targets.segment(truth, slots))
    for task in ("detect", "segment"):
        same, fine = ask(task, truth.images)  # nothing was found
        assert not fine.any()
        np.testing.assert_array_equal(same, truth.images)


def test_color_filters_by_name(some: Scenes) -> None:
    images = render.images(some)[:3]
    got, fine = ask("color", images, ["hue", "darken", "sing"])
    assert fine.tolist() == [True, True, False]
    which = np.array([exact_targets.FILTERS.index("hue"), exact_targets.FILTERS.index("darken")])
    np.testing.assert_array_equal(got[:2], exact_targets.colour_filter(images[:2], which))


def test_a_task_that_is_none_is_named(some: Scenes) -> None:
    with pytest.raises(ValueError, match=r"want detect, segment, color.*got 'remove'"):
        ask("remove", render.images(some[:1]))


def test_scenes_that_were_read_can_be_rendered(some: Scenes) -> None:
    images = render.images(some)
    again = toy_annotators.scene(toy_annotators.read(images))
    assert (again.count == some.count).all()
    near = render.truth(again)
    assert toy_annotators.misread(images, near).max() < 0.08
    assert toy_annotators.overlooked(images, near).max() < toy_annotators.OVERLOOKED
    empty = render.truth(replace(again, kind=np.full_like(again.kind, -1)))
    assert (toy_annotators.misread(images, empty) == 0).all()  # nothing was read, so nothing can be wrong with it
    assert toy_annotators.overlooked(images, empty).mean() > 2 * toy_annotators.overlooked(images, near).mean()
