"""The toy world's annotators: targets of the vision tasks for generated images, which have no ground truth.

Boxes and masks are given by the caller. Maps are rendered from the scene read from the image.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from emuedit.annotators import drawing
from toyworld.edits import exact_targets
from toyworld.edits.exact_judge import l1, masked_mean
from toyworld.reading import Reading, read_scenes
from toyworld.scenes import render
from toyworld.scenes.palette import BOX_RGB, MASK_RGB, PERSON
from toyworld.scenes.render import quantise
from toyworld.scenes.scene import EMPTY, SLOTS, Scenes

MAPS = ("depth", "sketch", "normal", "pose", "segmap")
"""Tasks whose target is a map of the whole image."""
MAX_OBJECT_ERROR = 0.20
"""Bound on `object_error` for an annotation to be used: nine of ten generated images are below."""
MAX_BLURRED_ERROR = 0.28
"""Bound on `blurred_error` for an annotation to be used: correct readings reach 0.27, those without an object 0.40."""
_BLUR_PX = 3.0  # sigma, removes the grain of a background, which is not part of a reading


def annotate(
    task: str, images: np.ndarray, words: Sequence[str], boxes_px: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The targets of a vision task for images uint8 [N, 64, 64, 3], in the same shape, and bool [N]: which are valid.

    `words`: filter names, used only by color; `boxes_px` [N, 4] (x0 y0 x1 y1): used only by detect; `masks` bool [N, 64, 64]:
    used only by segment. Raises ValueError for a task that is not a vision task.
    """
    if task == "detect":
        outline = drawing.box_outline(boxes_px, images.shape[1], images.shape[2], exact_targets.BOX_WIDTH_PX)
        not_empty = (boxes_px[:, 2] > boxes_px[:, 0]) & (boxes_px[:, 3] > boxes_px[:, 1])
        return np.where(outline[..., None], quantise(BOX_RGB), images), not_empty
    if task == "segment":
        return np.where(masks[..., None], quantise(MASK_RGB), images), np.asarray(masks.any((1, 2)))
    if task == "color":
        filters = exact_targets.FILTERS
        filter_index = np.array([filters.index(word) if word in filters else -1 for word in words], np.int64)
        valid = filter_index >= 0
        out = images.copy()
        out[valid] = exact_targets.apply_colour_filter(images[valid], filter_index[valid])
        return out, valid
    if task in MAPS:
        return _annotate_map(task, images)
    raise ValueError(f"want detect, segment, color, {', '.join(MAPS)}; got {task!r}")


def scenes_from_readings(readings: Sequence[Reading]) -> Scenes:
    """Convert readings to scenes that can be rendered. The window of the background is not read; it starts at 0."""
    n = len(readings)
    slots = {
        name: np.zeros((n, SLOTS), np.int16) for name in ("kind", "colour", "texture", "variant", "cell", "radius", "x", "y")
    }
    slots["kind"][:] = EMPTY
    for i, reading in enumerate(readings):
        for slot, seen_object in enumerate(reading.objects):
            for name, column in slots.items():
                column[i, slot] = getattr(seen_object, name)
    scene_fields = {
        name: np.array([getattr(reading, name) for reading in readings], np.int16)
        for name in ("background", "condition", "style")
    }
    zero = np.zeros(n, np.int16)
    return Scenes(number=np.zeros(n, np.int64), tile_x=zero, tile_y=zero, **slots, **scene_fields)


def _annotate_map(task: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maps of a task and bool [N]: which are valid, i.e. whose rendering is similar enough to the image."""
    scenes = scenes_from_readings(read_scenes(images))
    truth = render.truth(scenes)
    maps = {
        "depth": lambda: exact_targets.depth(truth),
        "normal": lambda: exact_targets.normal(truth),
        "sketch": lambda: exact_targets.sketch(truth),
        "segmap": lambda: exact_targets.segmap(scenes, truth),
        "pose": lambda: exact_targets.pose(scenes),
    }
    object_ok = object_error(images, truth) <= MAX_OBJECT_ERROR
    picture_ok = blurred_error(images, truth) <= MAX_BLURRED_ERROR
    valid = np.asarray(object_ok & picture_ok)
    if task == "pose":
        valid &= (scenes.kind == PERSON).any(1)
    return maps[task](), valid


def object_error(images: np.ndarray, truth: render.GroundTruth) -> np.ndarray:
    """[N] mean L1 in [0, 1] between images and renders of their readings, over the objects; 0 without objects."""
    return masked_mean(l1(images, truth.images), truth.owner >= 0)


def blurred_error(images: np.ndarray, truth: render.GroundTruth) -> np.ndarray:
    """[N] largest difference in [0, 1] between images and renders of their readings, after a blur of both.

    The difference is large if the reading misses an object.
    """
    blurred, blurred_render = (
        gaussian_filter(pictures.astype(np.float32) / 255, (0, _BLUR_PX, _BLUR_PX, 0)) for pictures in (images, truth.images)
    )
    largest: np.ndarray = np.abs(blurred - blurred_render).mean(-1).max((1, 2))
    return largest
