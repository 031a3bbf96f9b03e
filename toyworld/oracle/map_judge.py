"""Is the target of a vision task right? Boxes, masks and lines against what is read from the picture they belong to."""

import numpy as np

from emuedit.data.png import decode_png
from emuedit.data.records import Pair
from toyworld.edits import exact_targets, phrasings
from toyworld.edits.caption_parser import parse
from toyworld.edits.exact_judge import BOUND, l1
from toyworld.oracle.object_matching import Picture, find, index, looked_again, named
from toyworld.reading.toy_annotators import scene
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import GROUND, STYLE, WEATHER
from toyworld.scenes.palette import BOX_RGB, MASK_RGB

LEAST_IOU = 0.6
"""Least overlap of a box or mask with the object that was read: a pixel all round costs a small object a third of its area."""
LINES = 0.05
"""Most mean L1 in [0, 1] between a sketch and the sketch of what was read."""
_NEAR_RGB = 40  # of the colour of a box or mask, in levels
OUTSIDE = 0.05  # difference in [0, 1] above which a pixel was painted over
WHOLE = ("background", "condition", "style")


def from_map(pair: Pair) -> bool:
    """Is it the way back, from a map to the picture?"""
    return pair.source_caption.startswith(phrasings.MAP_OF[pair.task].format(caption=""))


def marked(pair: Pair, source: Picture) -> list[str]:
    """detect, segment: is the mark on the object, and on nothing else?"""
    noun = pair.target_caption.rpartition(phrasings.MARKED[pair.task].format(caption="", noun=""))[2]
    said = parse(pair.source_caption)
    things = [thing for thing in said.things if thing.noun == noun] if said else []
    if not things:
        raise ValueError(f"want an object of {pair.source_caption!r} to be marked, got {pair.target_caption!r}")
    source = looked_again(source, things[0], named(pair, things[0]), None)
    found = find(source.seen, things[0], named(pair, things[0]))
    if found is None:
        return ["source_object"]
    mask = source.masks[source.seen.objects.index(found)]
    pixels = decode_png(pair.target)
    rgb = render.quantise(BOX_RGB if pair.task == "detect" else MASK_RGB)
    painted = (np.abs(pixels.astype(int) - rgb) <= _NEAR_RGB).all(-1)
    changed = l1(source.pixels, pixels) > OUTSIDE
    painted &= changed
    if pair.task == "detect":
        mask, painted = _box(mask, 0), _box(painted, exact_targets.BOX_WIDTH_PX)
    iou = float((mask & painted).sum()) / max(float((mask | painted).sum()), 1)
    others = changed & ~painted & ~_box(painted, -exact_targets.BOX_WIDTH_PX)
    return ["target_mark"] * (iou < LEAST_IOU) + ["rest_outside"] * (float(others.mean()) > BOUND)


def _box(mask: np.ndarray, inset_px: int) -> np.ndarray:
    """The bounding box of a mask, filled, made smaller by `inset_px` on each side; bool [H, W]."""
    out = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        top, bottom = max(rows[0] + inset_px, 0), rows[-1] + 1 - inset_px
        left, right = max(columns[0] + inset_px, 0), columns[-1] + 1 - inset_px
        out[top : max(bottom, 0), left : max(right, 0)] = True
    return out


def sketched(pair: Pair, lines: np.ndarray, picture: Picture) -> list[str]:
    """sketch: do the lines fit the picture; from lines to a picture also: is it the picture that was asked for?"""
    back = from_map(pair)
    faults = []
    exact = exact_targets.sketch(render.truth(scene([picture.seen])))[0]
    if float(l1(lines, exact).mean()) > LINES:
        faults.append("source_lines" if back else "target_lines")
    said = parse(pair.target_caption) if back else None
    if said is not None:
        for thing in said.things:
            picture = looked_again(picture, thing, {"kind", "colour", "where"}, None)
        look = (index(GROUND, said.ground), index(WEATHER, said.weather), index(STYLE, said.style))
        faults += [f"target_{n}" for n, want in zip(WHOLE, look, strict=True) if getattr(picture.seen, n) != want]
        if len(said.things) != picture.seen.count:
            faults.append("target_count")
        if any(find(picture.seen, thing, {"kind", "colour", "where"}) is None for thing in said.things):
            faults.append("target_object")
    return faults
