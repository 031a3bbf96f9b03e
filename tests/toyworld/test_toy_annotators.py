from dataclasses import replace

import numpy as np
import pytest

from toyworld.edits import exact_targets
from toyworld.reading import toy_annotators
from toyworld.scenes import render
from toyworld.scenes.palette import PERSON
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers


@pytest.fixture(scope="module")
def held_out() -> Scenes:
    """Six photos in clear weather with one or two objects; the first two contain a person."""
    pool = generate_scenes(scene_numbers("held_out", 0, 600))
    plain = (pool.condition == 0) & (pool.style == 0) & (pool.count > 0) & (pool.count < 3)
    person = (pool.kind == PERSON).any(1)
    return pool[np.concatenate([np.flatnonzero(plain & person)[:2], np.flatnonzero(plain & ~person)[:4]])]


def annotate(
    task: str, images: np.ndarray, words: list[str] | None = None, **detections: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Annotate with no words, boxes or masks by default."""
    n = len(images)
    boxes = detections.get("boxes", np.zeros((n, 4), np.float32))
    masks = detections.get("masks", np.zeros((n, 64, 64), bool))
    return toy_annotators.annotate(task, images, words or [""] * n, boxes, masks)


@pytest.mark.slow
@pytest.mark.parametrize("task", toy_annotators.MAPS)
def test_maps_of_renders_are_the_exact_maps(held_out: Scenes, task: str) -> None:
    truth = render.truth(held_out)
    want = {
        "depth": exact_targets.depth(truth), "normal": exact_targets.normal(truth), "sketch": exact_targets.sketch(truth),
        "segmap": exact_targets.segmap(held_out, truth), "pose": exact_targets.pose(held_out),
    }[task]  # fmt: skip
    got, valid = annotate(task, truth.images)
    assert valid.tolist() == ([True, True, False, False, False, False] if task == "pose" else [True] * 6)
    error = np.abs(got.astype(float) - want).mean((1, 2, 3))[valid] / 255
    assert error.max() < 0.03


@pytest.mark.slow
def test_unreadable_pictures_are_invalid(held_out: Scenes) -> None:
    truth = render.truth(held_out[:3])
    spoiled = truth.images.copy()
    spoiled[truth.owner >= 0] = (255, 0, 255)  # a colour that no object has
    spoiled[:, ::3] //= 4
    _, valid = annotate("depth", spoiled)
    assert not valid.any()


def test_detect_and_segment_give_the_exact_targets_from_exact_boxes_and_masks(held_out: Scenes) -> None:
    truth = render.truth(held_out)
    slots = truth.masks.any((2, 3)).argmax(1)
    rows = np.arange(len(held_out))
    got, valid = annotate("detect", truth.images, boxes=truth.boxes[rows, slots])
    assert valid.all()
    np.testing.assert_array_equal(got, exact_targets.detect(truth, slots))
    got, valid = annotate("segment", truth.images, masks=truth.masks[rows, slots])
    assert valid.all()
    np.testing.assert_array_equal(got, exact_targets.segment(truth, slots))
    for task in ("detect", "segment"):
        unchanged, valid = annotate(task, truth.images)  # no box, no mask
        assert not valid.any()
        np.testing.assert_array_equal(unchanged, truth.images)


def test_color_filters_by_name(held_out: Scenes) -> None:
    images = render.images(held_out)[:3]
    got, valid = annotate("color", images, ["hue", "darken", "sing"])
    assert valid.tolist() == [True, True, False]
    filter_index = np.array([exact_targets.FILTERS.index("hue"), exact_targets.FILTERS.index("darken")])
    np.testing.assert_array_equal(got[:2], exact_targets.apply_colour_filter(images[:2], filter_index))


def test_an_unknown_task_is_an_error(held_out: Scenes) -> None:
    with pytest.raises(ValueError, match=r"want detect, segment, color.*got 'remove'"):
        annotate("remove", render.images(held_out[:1]))


@pytest.mark.slow
def test_readings_can_be_rendered(held_out: Scenes) -> None:
    images = render.images(held_out)
    read_back = toy_annotators.scenes_from_readings(toy_annotators.read_scenes(images))
    assert (read_back.count == held_out.count).all()
    rendered = render.truth(read_back)
    assert toy_annotators.object_error(images, rendered).max() < 0.08
    assert toy_annotators.blurred_error(images, rendered).max() < toy_annotators.MAX_BLURRED_ERROR
    empty = render.truth(replace(read_back, kind=np.full_like(read_back.kind, -1)))
    assert (toy_annotators.object_error(images, empty) == 0).all()  # no object was read, so the error is defined as 0
    assert toy_annotators.blurred_error(images, empty).mean() > 2 * toy_annotators.blurred_error(images, rendered).mean()
