"""Pictures of the toy world for people: scenes with all that is known of them, and every task before and after."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from emuedit.data.contact_sheet import grid, tiled
from toyworld.edits import exact_targets
from toyworld.edits.exact_edits import Edits
from toyworld.edits.exact_edits import edits as task_edits
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.palette import CLASS_RGB
from toyworld.scenes.scene import numbers, scenes


def scene_sheet(n: int = 6, start: int = 34) -> Image.Image:
    """One column a scene: picture, masks, depth, normals, outlines, segmentation map, and its caption below."""
    all_scenes = scenes(numbers("held_out", start, n))
    known = render.truth(all_scenes)
    masks = np.zeros_like(known.images)
    for slot in range(3):
        masks[known.owner == slot] = (CLASS_RGB[(3, 1, 0)[slot]] * 255).astype(np.uint8)
    rows = {
        "picture": known.images,
        "masks": masks,
        "depth": exact_targets.depth(known),
        "normals": exact_targets.normal(known),
        "sketch": exact_targets.sketch(known),
        "classes": exact_targets.segmap(all_scenes, known),
    }
    return grid(list(rows.items()), all_captions(all_scenes), lines=6)


def task_sheet(tasks: Sequence[str], columns: int = 4, start: int = 0) -> Image.Image:
    """Two tasks side by side to a row: `columns` edits each, before above after, the instruction below."""
    strips = [edit_strip(task_edits(name, "held_out", start, columns)) for name in tasks]
    return tiled(strips, columns=2)


def edit_strip(some: Edits) -> Image.Image:
    """The edits of one task: before above exact result."""
    return grid([("before", some.before), ("after", some.exact)], some.instructions, lines=4, title=some.task)
