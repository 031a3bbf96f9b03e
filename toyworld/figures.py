"""Overview sheets of the toy world: scenes with their ground truth, and every task before and after the edit."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from emuedit.data.contact_sheet import picture_grid, tile_sheets
from toyworld.edits import exact_targets
from toyworld.edits.exact_edits import Edits, build_edits
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import all_captions
from toyworld.scenes.palette import CLASS_RGB
from toyworld.scenes.scene import generate_scenes, scene_numbers


def scene_sheet(n: int = 6, start: int = 34) -> Image.Image:
    """One column per scene: image, masks, depth, normals, edge sketch, segmentation map and caption."""
    scenes = generate_scenes(scene_numbers("held_out", start, n))
    truth = render.truth(scenes)
    masks = np.zeros_like(truth.images)
    for slot in range(3):
        masks[truth.owner == slot] = (CLASS_RGB[(3, 1, 0)[slot]] * 255).astype(np.uint8)
    rows = {
        "picture": truth.images,
        "masks": masks,
        "depth": exact_targets.depth(truth),
        "normals": exact_targets.normal(truth),
        "sketch": exact_targets.sketch(truth),
        "classes": exact_targets.segmap(scenes, truth),
    }
    return picture_grid(list(rows.items()), all_captions(scenes), lines=6)


def task_sheet(tasks: Sequence[str], columns: int = 4, start: int = 0) -> Image.Image:
    """Two tasks per row, each with `columns` edits: the input above the exact result, the instruction below."""
    strips = [edit_strip(build_edits(name, "held_out", start, columns)) for name in tasks]
    return tile_sheets(strips, columns=2)


def edit_strip(edits: Edits) -> Image.Image:
    """The edits of one task: each input above its exact result, the instruction below."""
    return picture_grid([("before", edits.before), ("after", edits.exact)], edits.instructions, lines=4, title=edits.task)
