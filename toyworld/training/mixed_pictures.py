"""Every kind of picture that the sixteen tasks show or make: what the VAE and the judges must have seen."""

import numpy as np

from toyworld.edits import exact_targets
from toyworld.scenes.render import truth
from toyworld.scenes.scene import pick, scenes, uniform

KINDS = ("scene", "detect", "segment", "depth", "normal", "segmap", "sketch", "contour", "pose", "filter", "quarter")
SHARES = np.array([0.58, 0.07, 0.05, 0.04, 0.05, 0.04, 0.05, 0.02, 0.02, 0.06, 0.02])


def mixed(numbers: np.ndarray) -> np.ndarray:
    """One picture a scene number, of a kind that the number decides; uint8 [N, 64, 64, 3]."""
    which = pick(numbers, "picture", SHARES)
    all_scenes = scenes(numbers)
    known = truth(all_scenes)
    out = known.images.copy()
    slots = (uniform(numbers, "anyslot") * all_scenes.count).astype(int)
    for i, kind in enumerate(KINDS[1:], 1):
        rows = np.flatnonzero(which == i)
        if not len(rows):
            continue
        part, part_scenes = known.rows(rows), all_scenes[rows]
        if kind in ("detect", "segment"):
            out[rows] = getattr(exact_targets, kind)(part, slots[rows])
        elif kind == "segmap":
            out[rows] = exact_targets.segmap(part_scenes, part)
        elif kind == "pose":
            out[rows] = exact_targets.pose(part_scenes)
        elif kind == "filter":
            chosen = pick(numbers[rows], "filter", np.ones(len(exact_targets.FILTERS)))
            out[rows] = exact_targets.colour_filter(part.images, chosen)
        elif kind == "quarter":
            out[rows] = exact_targets.quarter(part.images)
        else:
            out[rows] = getattr(exact_targets, kind)(part)
    return out
