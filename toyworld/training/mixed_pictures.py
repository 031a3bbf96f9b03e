"""Images of every kind used as input or output of the sixteen tasks: training images of the VAE and the scorers."""

import numpy as np

from toyworld.edits import exact_targets
from toyworld.scenes.render import truth
from toyworld.scenes.scene import generate_scenes, pick, uniform

KINDS = ("scene", "detect", "segment", "depth", "normal", "segmap", "sketch", "contour", "pose", "filter", "quarter")
SHARES = np.array([0.58, 0.07, 0.05, 0.04, 0.05, 0.04, 0.05, 0.02, 0.02, 0.06, 0.02])
"""The share of each of `KINDS` among the images."""


def render_mixed(numbers: np.ndarray) -> np.ndarray:
    """Render one image for each scene number [N], of a kind that the number determines; uint8 [N, 64, 64, 3]."""
    kind_index = pick(numbers, "picture", SHARES)
    scenes = generate_scenes(numbers)
    all_truth = truth(scenes)
    out = all_truth.images.copy()
    slots = (uniform(numbers, "anyslot") * scenes.count).astype(int)
    for i, kind in enumerate(KINDS[1:], 1):
        rows = np.flatnonzero(kind_index == i)
        if not len(rows):
            continue
        kind_truth, kind_scenes = all_truth.select(rows), scenes[rows]
        if kind in ("detect", "segment"):
            out[rows] = getattr(exact_targets, kind)(kind_truth, slots[rows])
        elif kind == "segmap":
            out[rows] = exact_targets.segmap(kind_scenes, kind_truth)
        elif kind == "pose":
            out[rows] = exact_targets.pose(kind_scenes)
        elif kind == "filter":
            filters = pick(numbers[rows], "filter", np.ones(len(exact_targets.FILTERS)))
            out[rows] = exact_targets.apply_colour_filter(kind_truth.images, filters)
        elif kind == "quarter":
            out[rows] = exact_targets.downsample_4x(kind_truth.images)
        else:
            out[rows] = getattr(exact_targets, kind)(kind_truth)
    return out
