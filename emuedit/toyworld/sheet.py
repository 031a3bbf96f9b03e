"""Pictures of the toy world for people: scenes with all that is known of them, and every task before and after."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emuedit.toyworld import annotate, render
from emuedit.toyworld.edits import Edits
from emuedit.toyworld.edits import edits as task_edits
from emuedit.toyworld.grammar import all_captions
from emuedit.toyworld.palette import CLASS_RGB, SIZE
from emuedit.toyworld.scene import numbers, scenes

ZOOM = 2
PAD = 8
INK, PAPER, FAINT = (32, 32, 36), (252, 252, 250), (120, 120, 126)


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
        "depth": annotate.depth(known),
        "normals": annotate.normal(known),
        "sketch": annotate.sketch(known),
        "classes": annotate.segmap(all_scenes, known),
    }
    return grid(list(rows.items()), all_captions(all_scenes), lines=6)


def task_sheet(tasks: Sequence[str], columns: int = 4, start: int = 0) -> Image.Image:
    """Two tasks side by side to a row: `columns` edits each, before above after, the instruction below."""
    strips = [edit_strip(task_edits(name, "held_out", start, columns)) for name in tasks]
    width, height = strips[0].size
    sheet = Image.new("RGB", (2 * width + PAD, (len(strips) + 1) // 2 * (height + PAD)), PAPER)
    for i, strip in enumerate(strips):
        sheet.paste(strip, ((i % 2) * (width + PAD), i // 2 * (height + PAD)))
    return sheet


def edit_strip(some: Edits) -> Image.Image:
    """The edits of one task: before above exact result."""
    return grid([("before", some.before), ("after", some.exact)], some.instructions, lines=4, title=some.task)


def grid(rows: list[tuple[str, np.ndarray]], captions: list[str], lines: int, title: str = "") -> Image.Image:
    """Pictures uint8 `[N, 64, 64, 3]` in named rows, with a caption of at most `lines` lines under every column."""
    cell, font, small = SIZE * ZOOM, ImageFont.load_default(15), ImageFont.load_default(12)
    left, top, step = 60, 28 if title else PAD, 15
    n = len(captions)
    size = (left + n * (cell + PAD) + PAD, top + len(rows) * (cell + PAD) + lines * step + PAD)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD, PAD), title, INK, font)
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (cell + PAD)
        draw.text((PAD, y + cell // 2 - 8), name, FAINT, small)
        for c in range(n):
            sheet.paste(_zoomed(pictures[c]), (left + c * (cell + PAD), y))
    y = top + len(rows) * (cell + PAD)
    for c, caption in enumerate(captions):
        wrapped = textwrap.wrap(caption, 22)
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][:20] + "…"]
        draw.multiline_text((left + c * (cell + PAD), y), "\n".join(wrapped), INK, small, spacing=2)
    return sheet


def _zoomed(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.NEAREST)
