"""Judge of the edits of a task: `exact_judge`, adapted to ambiguous instructions and visible faults.

- add: the instruction names a part of the image, not a pixel, so the object may be up to `MAX_SHIFT_PX` from the exact position.
- detect: a line that is one pixel off is a correct box; an open line, or one around more than the object, is not.
- add_detect: the line as in detect, and the object without the line, which has more pixels than a wrong colour changes.
- remove: remains of an object may be nearer to the background than to the object, and still be visible.
- every task: an output is wrong that is clearly nearer to the exact result with another change, such as a lost object.
- background: the exact result is one instance of a texture; other instances are equally correct.

The bounds were chosen on labelled outputs (tests/toyworld/judge_labels); docs/toyworld.md reports the agreement.
"""

from dataclasses import replace

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

from toyworld.edits import exact_judge
from toyworld.edits.exact_judge import CHANGED_L1, EXACT, INPUT, Judgement, edit_region, l1
from toyworld.scenes.palette import BOX_RGB
from toyworld.scenes.render import quantise

MAX_SHIFT_PX = 6
"""Allowed shift of an added object from the exact position, in x and y: two thirds of a small object's radius."""
_MARGIN = (MAX_SHIFT_PX, MAX_SHIFT_PX)
_STEPS = range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, 2)
_SHIFTS = np.array([(dx, dy) for dx in _STEPS for dy in _STEPS])  # [S, 2] px
OTHER_RGB = np.array([rgb for rgb in np.ndindex(2, 2, 2) if rgb not in ((1, 0, 1), (0, 1, 1))], np.uint8) * np.uint8(255)
"""uint8 [6, 3]: wrong colours of boxes and masks, the corners of the RGB cube without magenta (boxes) and cyan (masks)."""
LINE_TOLERANCE_PX = 3
"""A line pixel is correct if the exact line is less than this far away, px."""
MIN_LINE_RECALL = 0.6
"""Smallest share of the exact line that has a drawn pixel nearby."""
MIN_LINE_PRECISION = 0.85
"""Smallest share of the drawn pixels that have a pixel of the exact line nearby."""
MAX_REMNANT_L1 = 0.07
"""Largest L1 in [0, 1] to the exact result, both blurred, in the region of a removed object."""
REMNANT_BLUR_PX = 2.5
INSTANCE_BLUR_PX = 2.0
"""Blur that keeps a background's colours and removes the details of its pattern."""
MAX_OBJECTS_L1 = 0.07
"""`MAX_OUTSIDE_L1` for objects on a new background, whose rims mix with it."""


def judge(
    task: str, output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray, spoiled: np.ndarray
) -> Judgement:
    """Judge N outputs of an editor for one task. Images are uint8 `[N, 64, 64, 3]`, alternatives `[N, K, 64, 64, 3]`.

    `spoiled` `[N, M, 64, 64, 3]`: exact results with another change. Raises ValueError as `exact_judge.judge` does.
    """
    judgement = _JUDGES.get(task, exact_judge.judge)(output, before, exact, alternatives)
    faults = exact_judge.find_spoiled(output, exact, spoiled)
    reason = tuple("; ".join(filter(None, both)) for both in zip(judgement.reason, faults, strict=True))
    return replace(judgement, success=np.array([not text for text in reason], bool), reason=reason)


def judge_added_object(output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray) -> Judgement:
    """Like `exact_judge.judge`, after moving the exact result and every alternative to best fit the output."""
    moved, wrong, regions = _move_all_to_fit(output, before, exact, alternatives)
    nearest = exact_judge.find_nearest(output, before, moved, wrong, regions)
    return exact_judge.conclude(output, moved, edit_region(before, moved), nearest)


def judge_added_and_boxed_object(
    output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray
) -> Judgement:
    """Both parts must be right: the object, judged without the pixels of the line, and the line, as by `judge_box`.

    The exact result may be moved like an added object, together with its box. The alternatives have the exact result's line.
    """
    moved, wrong, regions = _move_all_to_fit(output, before, exact, alternatives)
    line = (moved == quantise(BOX_RGB)).all(-1)
    nearest = exact_judge.find_nearest(output, before, moved, wrong, regions & ~line)
    without_line = np.where(line[..., None], before, moved)
    line_faults, near_line = _line_faults(output, (before, without_line), line)
    faults = [
        "; ".join(filter(None, (exact_judge.fault_inside(int(image)), fault)))
        for image, fault in zip(nearest, line_faults, strict=True)
    ]
    return exact_judge.conclude(output, moved, near_line | edit_region(before, moved), nearest, faults)


def _move_all_to_fit(
    output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The exact results and the alternatives, each moved to best fit the output, and bool [N, 64, 64]: where they may be."""
    moved, wrong, regions = exact.copy(), alternatives.copy(), np.zeros(exact.shape[:3], bool)
    padded_output, padded_before = (np.pad(images, ((0, 0), _MARGIN, _MARGIN, (0, 0))) for images in (output, before))
    padded_errors = np.pad(l1(output, before), ((0, 0), _MARGIN, _MARGIN))
    for n in range(len(output)):
        images = np.concatenate([exact[n : n + 1], alternatives[n]])
        changed = l1(images, before[n]) > CHANGED_L1  # [1 + K, 64, 64]
        regions[n] = binary_dilation(changed.any(0), iterations=MAX_SHIFT_PX)
        moved[n], *wrong[n] = (
            _move_to_fit(padded_output[n], padded_before[n], padded_errors[n], image, pixels)
            for image, pixels in zip(images, changed, strict=True)
        )
    return moved, wrong, regions


def _move_to_fit(
    output: np.ndarray, before: np.ndarray, error_before: np.ndarray, image: np.ndarray, changed: np.ndarray
) -> np.ndarray:
    """`before` with the changed pixels of `image`, moved to best fit the output; uint8 [H, W, 3].

    The output, `before` and the L1 between them are padded by `_MARGIN`; the error outside the image is 0.
    """
    width = output.shape[1]
    y, x = np.nonzero(changed)
    pixels, place = image[y, x], (y + MAX_SHIFT_PX) * width + x + MAX_SHIFT_PX
    places = place + (_SHIFTS[:, 1:] * width + _SHIFTS[:, :1])  # [S, P]
    visible = np.pad(np.ones(changed.shape, np.float32), _MARGIN).ravel()[places]
    error = l1(output.reshape(-1, 3)[places], pixels) * visible
    best = int((error - error_before.ravel()[places]).sum(1).argmin())  # by the error of the whole image
    moved = before.copy()
    moved.reshape(-1, 3)[places[best]] = pixels
    return moved[MAX_SHIFT_PX:-MAX_SHIFT_PX, MAX_SHIFT_PX:-MAX_SHIFT_PX]


def judge_box(output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray) -> Judgement:
    """Whether a box is drawn along the exact line, by recall and precision with a tolerance, and nothing else changes.

    A pixel is drawn if it is nearer to the colour of boxes than to the input and to other colours. The measures follow the
    Berkeley benchmark for boundaries (Martin, Fowlkes and Malik 2004). The alternatives, boxes of other objects, have too little
    recall.
    """
    del alternatives
    faults, near_line = _line_faults(output, (before,), (exact != before).any(-1))
    nearest = np.where([not fault for fault in faults], EXACT, INPUT)
    return exact_judge.conclude(output, exact, near_line, nearest, faults)


def _line_faults(output: np.ndarray, without_line: tuple[np.ndarray, ...], line: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The fault of each drawn line, or '', and bool [N, H, W]: the pixels near the exact `line`, bool [N, H, W].

    A pixel is drawn if it is nearer to the colour of boxes than to other colours and to each of the images `without_line`, uint8
    [N, H, W, 3].
    """
    rgb = quantise(BOX_RGB)
    to_rgb = l1(output, rgb)
    drawn = np.all([(to_rgb < l1(output, image)) & (l1(image, rgb) > CHANGED_L1) for image in (*without_line, *OTHER_RGB)], 0)
    near_line, near_drawn = _near(line), _near(drawn)
    recall = exact_judge.masked_mean(near_drawn, line)
    precision = exact_judge.masked_mean(near_line, drawn)
    right = (recall >= MIN_LINE_RECALL) & (precision >= MIN_LINE_PRECISION)
    faults = [
        "" if right[n] else f"recall {recall[n]:.2f} and precision {precision[n]:.2f} of the box's line"
        for n in range(len(output))
    ]
    return faults, near_line


def _near(pixels: np.ndarray) -> np.ndarray:
    """bool [N, H, W]: less than `LINE_TOLERANCE_PX` from one of these pixels."""
    distance = [distance_transform_edt(~image) if image.any() else np.full(image.shape, np.inf) for image in pixels]
    return np.stack(distance) < LINE_TOLERANCE_PX


def judge_removal(output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray) -> Judgement:
    """Like `exact_judge.judge`; in addition, no traces of the object may remain."""
    region = edit_region(before, exact)
    nearest = exact_judge.find_nearest(output, before, exact, alternatives, region)
    remnant = (l1(_blur(output, REMNANT_BLUR_PX), _blur(exact, REMNANT_BLUR_PX)) * region).max((1, 2))
    faults = [
        exact_judge.fault_inside(int(image)) or (f"a trace of {shade:.3f} remains" if shade > MAX_REMNANT_L1 else "")
        for image, shade in zip(nearest, remnant, strict=True)
    ]
    return exact_judge.conclude(output, exact, region, nearest, faults)


def judge_background(output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray) -> Judgement:
    """Like `exact_judge.judge`, but backgrounds are compared by colour, since the exact one is one of many instances."""
    region = edit_region(before, exact) | (l1(alternatives, exact[:, None]) > CHANGED_L1).any(1)  # all but the objects
    output_colours, before_colours, exact_colours = (_blur(images, INSTANCE_BLUR_PX) for images in (output, before, exact))
    others = _blur(alternatives.reshape(-1, *output.shape[1:]), INSTANCE_BLUR_PX).reshape(alternatives.shape)
    nearest = exact_judge.find_nearest(output_colours, before_colours, exact_colours, others, region)
    return exact_judge.conclude(output, exact, region, nearest, max_outside_l1=MAX_OBJECTS_L1)


def _blur(images: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian blur of each image, uint8 [N, H, W, 3]."""
    return gaussian_filter(images, (0, sigma_px, sigma_px, 0))


_JUDGES = {
    "add": judge_added_object,
    "add_detect": judge_added_and_boxed_object,
    "background": judge_background,
    "detect": judge_box,
    "remove": judge_removal,
}
"""Task -> judge, for tasks with another judge than `exact_judge.judge`."""
