"""The toy world's annotators: targets of the vision tasks for painted pictures, of which no truth is known.

Boxes and masks come from whoever found the object; maps are drawn from the scene that is read back from the picture.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from emuedit.annotators import drawing
from toyworld.edits import exact_targets
from toyworld.edits.exact_judge import l1, mean_over
from toyworld.reading import Reading, read
from toyworld.scenes import render
from toyworld.scenes.palette import BOX_RGB, MASK_RGB, PERSON
from toyworld.scenes.render import quantise
from toyworld.scenes.scene import EMPTY, SLOTS, Scenes

MAPS = ("depth", "sketch", "normal", "pose", "segmap")
READABLE = 0.20
"""Most mean L1 in [0, 1] between the objects that were read and the picture: nine of ten painted pictures stay below."""
OVERLOOKED = 0.28
"""Most difference in [0, 1] anywhere, both blurred by `_BLUR_PX`: right readings reach 0.27, those that lack an object 0.40."""
_BLUR_PX = 3.0  # wide enough for the grain of a background, which cannot be read


def annotate(
    task: str, images: np.ndarray, words: Sequence[str], boxes_px: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The targets uint8 [N, 64, 64, 3] of a vision task for pictures of that shape, and bool [N]: could it be drawn?

    `words` names the filter (color), `boxes_px` [N, 4] (x0 y0 x1 y1) the object (detect), `masks` bool [N, 64, 64] its pixels
    (segment); each matters to its task alone. Raises ValueError for a task that is no vision task.
    """
    if task == "detect":
        line = drawing.frame(boxes_px, images.shape[1], images.shape[2], exact_targets.BOX_WIDTH_PX)
        found = (boxes_px[:, 2] > boxes_px[:, 0]) & (boxes_px[:, 3] > boxes_px[:, 1])
        return np.where(line[..., None], quantise(BOX_RGB), images), found
    if task == "segment":
        return np.where(masks[..., None], quantise(MASK_RGB), images), np.asarray(masks.any((1, 2)))
    if task == "color":
        which = np.array([exact_targets.FILTERS.index(word) if word in exact_targets.FILTERS else -1 for word in words], np.int64)
        known = which >= 0
        out = images.copy()
        out[known] = exact_targets.colour_filter(images[known], which[known])
        return out, known
    if task in MAPS:
        return _mapped(task, images)
    raise ValueError(f"want detect, segment, color, {', '.join(MAPS)}; got {task!r}")


def scene(readings: Sequence[Reading]) -> Scenes:
    """What was read, as scenes that can be rendered. The noise of a background cannot be read: it begins anywhere."""
    n = len(readings)
    slots = {
        name: np.zeros((n, SLOTS), np.int16) for name in ("kind", "colour", "texture", "variant", "cell", "radius", "x", "y")
    }
    slots["kind"][:] = EMPTY
    for i, one in enumerate(readings):
        for slot, seen in enumerate(one.objects):
            for name, column in slots.items():
                column[i, slot] = getattr(seen, name)
    whole = {name: np.array([getattr(one, name) for one in readings], np.int16) for name in ("background", "condition", "style")}
    zero = np.zeros(n, np.int16)
    return Scenes(number=np.zeros(n, np.int64), tile_x=zero, tile_y=zero, **slots, **whole)


def _mapped(task: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scenes = scene(read(images))
    truth = render.truth(scenes)
    draw = {
        "depth": lambda: exact_targets.depth(truth),
        "normal": lambda: exact_targets.normal(truth),
        "sketch": lambda: exact_targets.sketch(truth),
        "segmap": lambda: exact_targets.segmap(scenes, truth),
        "pose": lambda: exact_targets.pose(scenes),
    }
    fine = np.asarray((misread(images, truth) <= READABLE) & (overlooked(images, truth) <= OVERLOOKED))
    if task == "pose":
        fine &= (scenes.kind == PERSON).any(1)
    return draw[task](), fine


def misread(images: np.ndarray, truth: render.Truth) -> np.ndarray:
    """[N] mean L1 in [0, 1] between pictures and what was read from them, on the objects; 0 where none were read."""
    return mean_over(l1(images, truth.images), truth.owner >= 0)


def overlooked(images: np.ndarray, truth: render.Truth) -> np.ndarray:
    """[N] largest difference in [0, 1] between pictures and what was read from them, both blurred: what was not read."""
    soft, read_soft = (
        gaussian_filter(pictures.astype(np.float32) / 255, (0, _BLUR_PX, _BLUR_PX, 0)) for pictures in (images, truth.images)
    )
    largest: np.ndarray = np.abs(soft - read_soft).mean(-1).max((1, 2))
    return largest
