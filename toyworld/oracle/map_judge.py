"""Judge targets of vision tasks: compare boxes, masks and line drawings with the scene read from the image."""

import numpy as np

from emuedit.data.png import decode_png
from emuedit.data.records import Pair
from toyworld.edits import exact_targets, phrasings
from toyworld.edits.caption_parser import parse
from toyworld.edits.exact_judge import MAX_OUTSIDE_L1, l1
from toyworld.oracle.object_matching import ReadImage, find_object, named_attributes, phrase_row, reread_expecting
from toyworld.reading.toy_annotators import scenes_from_readings
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import BACKGROUND_PHRASES, STYLE_PHRASES, WEATHER_PHRASES
from toyworld.scenes.palette import BOX_RGB, MASK_RGB

MIN_IOU = 0.6
"""Smallest overlap of a box or mask with the object. A margin of one pixel is a third of a small object's area."""
MAX_SKETCH_L1 = 0.05
"""Largest mean L1 in [0, 1] between a line drawing and the line drawing of the scene that was read."""
MAX_COLOUR_DIFFERENCE = 40
"""Largest difference per channel, in levels of 255, between a pixel of a box or mask and its nominal colour."""
CHANGED_L1 = 0.05
"""A pixel of the target counts as changed if its L1 to the source, in [0, 1], is larger than this."""
SCENE_ATTRIBUTES = ("background", "condition", "style")


def is_from_map(pair: Pair) -> bool:
    """Whether a pair of a map task goes from map to image."""
    return pair.source_caption.startswith(phrasings.MAP_CAPTION[pair.task].format(caption=""))


def judge_mark(pair: Pair, source: ReadImage) -> list[str]:
    """Faults of a pair of detect or segment: the box or mask must be on the object, and nothing else may change.

    Raises ValueError if the source caption does not contain the object that the target caption names.
    """
    noun = pair.target_caption.rpartition(phrasings.ANNOTATED_CAPTION[pair.task].format(caption="", noun=""))[2]
    caption = parse(pair.source_caption)
    candidates = [candidate for candidate in caption.objects if candidate.noun == noun] if caption else []
    if not candidates:
        raise ValueError(f"want a marked object of {pair.source_caption!r}, got {pair.target_caption!r}")
    described = candidates[0]
    attributes = named_attributes(pair, described)
    source = reread_expecting(source, described, attributes, competitor=None)
    seen = find_object(source.reading, described, attributes)
    if seen is None:
        return ["source_object"]
    object_area = source.mask(seen)
    target = decode_png(pair.target)
    rgb = render.quantise(BOX_RGB if pair.task == "detect" else MASK_RGB)
    changed = l1(source.pixels, target) > CHANGED_L1
    marked_area = (np.abs(target.astype(int) - rgb) <= MAX_COLOUR_DIFFERENCE).all(-1) & changed
    if pair.task == "detect":
        object_area = _fill_box(object_area, 0)
        marked_area = _fill_box(marked_area, exact_targets.BOX_WIDTH_PX)
    iou = float((object_area & marked_area).sum()) / max(float((object_area | marked_area).sum()), 1)
    changed_elsewhere = changed & ~marked_area & ~_fill_box(marked_area, -exact_targets.BOX_WIDTH_PX)
    faults = ["target_mark"] if iou < MIN_IOU else []
    return faults + ["rest_outside"] * (float(changed_elsewhere.mean()) > MAX_OUTSIDE_L1)


def _fill_box(mask: np.ndarray, inset_px: int) -> np.ndarray:
    """The filled bounding box of a mask, smaller by `inset_px` on each side; bool [H, W]."""
    out = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        top, bottom = max(rows[0] + inset_px, 0), rows[-1] + 1 - inset_px
        left, right = max(columns[0] + inset_px, 0), columns[-1] + 1 - inset_px
        out[top : max(bottom, 0), left : max(right, 0)] = True
    return out


def judge_sketch(pair: Pair, lines: np.ndarray, image: ReadImage) -> list[str]:
    """Faults of a pair of sketch: the lines, uint8 [64, 64, 3], must fit the image.

    If the image is the target, it must also show what the target caption describes.
    """
    from_map = is_from_map(pair)
    faults = []
    exact_lines = exact_targets.sketch(render.truth(scenes_from_readings([image.reading])))[0]
    if float(l1(lines, exact_lines).mean()) > MAX_SKETCH_L1:
        faults.append("source_lines" if from_map else "target_lines")
    caption = parse(pair.target_caption) if from_map else None
    if caption is None:
        return faults
    attributes = {"kind", "colour", "position"}
    for described in caption.objects:
        image = reread_expecting(image, described, attributes, competitor=None)
    described_scene = {
        "background": phrase_row(BACKGROUND_PHRASES, caption.background),
        "condition": phrase_row(WEATHER_PHRASES, caption.weather),
        "style": phrase_row(STYLE_PHRASES, caption.style),
    }
    faults += [f"target_{name}" for name in SCENE_ATTRIBUTES if getattr(image.reading, name) != described_scene[name]]
    if len(caption.objects) != image.reading.count:
        faults.append("target_count")
    if any(find_object(image.reading, described, attributes) is None for described in caption.objects):
        faults.append("target_object")
    return faults
