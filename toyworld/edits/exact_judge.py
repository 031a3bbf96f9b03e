"""Judge of edits with a reference result: compares an editor's output with the exact result of the renderer.

The method and its bounds are ours, not from a paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

MAX_OUTSIDE_L1 = 0.06
"""Largest mean L1 outside the region, in [0, 1]. The toy VAE contributes 0.01 to 0.05, a new background about 0.1."""
MIN_OUTSIDE_PX = 1024
"""Minimum size of the outside in px (a quarter of an image), since decoders blur a thin rim."""
MAX_WINDOW_L1 = 0.16
"""Largest mean L1 in any window of 8x8 px outside the region. It detects small objects that were lost or recoloured."""
WINDOW_PX = 8
CHANGED_L1 = 0.06
"""A pixel belongs to the edit region if its L1 between input and exact result is larger than this."""
MAX_SPOILED_RATIO = 0.6
"""Where a spoiled result differs from the exact one, an output is spoiled whose distance to it is less than this share of that to
the exact result. Soft outputs are about as far from both; chosen on labelled outputs (tests/toyworld/judge_labels)."""
MIN_CHANGED_PX = 24
"""Minimum wrong area in px for a wrong result to be distinguishable from the exact one."""
EXACT, INPUT = 0, 1
"""Values of `Judgement.nearest`; `2 + k` is alternative k."""


@dataclass(frozen=True)
class Judgement:
    """Results for N edits. Errors are mean L1 distances to the exact result, in [0, 1]."""

    success: np.ndarray  # bool [N]
    nearest: np.ndarray  # int64 [N]: image nearest to the output inside the region: EXACT, INPUT or 2 + alternative
    inside_error: np.ndarray  # float32 [N], inside the region
    outside_error: np.ndarray  # float32 [N], outside the region; 0 if there is no outside
    worst_window: np.ndarray  # float32 [N], in the worst window outside the region
    reason: tuple[str, ...]  # why the edit failed; '' on success


def edit_region(before: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """bool [N, 64, 64]: the pixels that the edit must change. Images are uint8 `[N, 64, 64, 3]`."""
    return l1(before, exact) > CHANGED_L1


def judge(
    output: np.ndarray,
    before: np.ndarray,
    exact: np.ndarray,
    alternatives: Sequence[np.ndarray] | np.ndarray,
    region: np.ndarray | None = None,
    max_outside_l1: float = MAX_OUTSIDE_L1,
    max_window_l1: float = MAX_WINDOW_L1,
) -> Judgement:
    """Judge N outputs of an editor. All images are uint8 `[N, 64, 64, 3]`.

    An edit succeeds if three conditions hold (distances are mean L1):
    - inside the region, the output is strictly nearer to the exact result than to the input or any alternative;
    - outside the region, the mean L1 to the exact result is at most `max_outside_l1`;
    - in every window of `WINDOW_PX` outside the region, it is at most `max_window_l1`.

    `alternatives[n]` is uint8 `[K_n, 64, 64, 3]`: the same edit with other values of the edited attribute.
    `region` is bool `[N, 64, 64]`; the default is `edit_region(before, exact)`.
    Raises ValueError if a shape or dtype is wrong, if a region is empty, or if the input or an alternative equals the
    exact result inside the region.
    """
    _check_images(output, before, exact)
    if region is None:
        region = edit_region(before, exact)
    nearest = find_nearest(output, before, exact, alternatives, region)
    return conclude(output, exact, region, nearest, max_outside_l1=max_outside_l1, max_window_l1=max_window_l1)


def find_nearest(
    output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: Sequence[np.ndarray] | np.ndarray, region: np.ndarray
) -> np.ndarray:
    """int64 [N]: the image that is nearest to each output inside the region: EXACT, INPUT or 2 + alternative.

    Raises ValueError as `judge` does.
    """
    _check_images(output, before, exact)
    if len(alternatives) != len(exact):
        raise ValueError(f"alternatives must be one array per edit, want {len(exact)}, got {len(alternatives)}")
    if region.dtype != bool or region.shape != exact.shape[:3]:
        raise ValueError(f"region must be bool {list(exact.shape[:3])}, got {region.dtype} {list(region.shape)}")
    empty_rows = np.flatnonzero(~region.any((1, 2)))
    if len(empty_rows):
        raise ValueError(f"want a non-empty region, got edits {empty_rows.tolist()} without a change; remove them")
    return np.array(
        [_nearest(output[n], before[n], exact[n], alternatives[n], region[n], n) for n in range(len(exact))], np.int64
    )


def find_spoiled(output: np.ndarray, exact: np.ndarray, spoiled: np.ndarray) -> list[str]:
    """The fault of each output that shows the edit together with another change, or ''.

    `spoiled`: uint8 `[N, K, 64, 64, 3]`, exact results with another change, such as a lost object; may equal the exact results.
    """
    faults = []
    for image, right, wrong in zip(output, exact, spoiled, strict=True):
        differs = l1(wrong, right) > CHANGED_L1  # [K, 64, 64]
        n_px = differs.sum((1, 2))
        to_exact, to_wrong = ((differs * error).sum((1, 2)) for error in (l1(image, right), l1(wrong, image)))
        is_spoiled = (n_px >= MIN_CHANGED_PX) & (to_wrong < MAX_SPOILED_RATIO * to_exact)
        faults.append(
            f"the output is nearer to the exact result with another change, {is_spoiled.argmax()}" if is_spoiled.any() else ""
        )
    return faults


def conclude(
    output: np.ndarray,
    exact: np.ndarray,
    region: np.ndarray,
    nearest: np.ndarray,
    faults: Sequence[str] | None = None,
    max_outside_l1: float = MAX_OUTSIDE_L1,
    max_window_l1: float = MAX_WINDOW_L1,
) -> Judgement:
    """The judgement of N outputs from the verdicts on their regions and the errors outside.

    `faults[n]`: the fault inside the region, or ''; None: derived from `nearest`.
    """
    if faults is None:
        faults = [fault_inside(int(n)) for n in nearest]
    error = l1(output, exact)  # [N, 64, 64]
    outside_error = masked_mean(error, ~region, MIN_OUTSIDE_PX)
    window_errors = uniform_filter(error * ~region, (0, WINDOW_PX, WINDOW_PX), mode="constant")
    worst_window = window_errors.max((1, 2)).astype(np.float32)
    reason = []
    for fault, outside, window in zip(faults, outside_error.tolist(), worst_window.tolist(), strict=True):
        reasons = [fault] if fault else []
        if outside > max_outside_l1:
            reasons.append(f"outside the region the mean L1 is {outside:.3f}, above {max_outside_l1:.3f}")
        if window > max_window_l1:
            reasons.append(f"in a window outside the region the mean L1 is {window:.3f}, above {max_window_l1:.3f}")
        reason.append("; ".join(reasons))
    success = np.array([not text for text in reason], bool)
    return Judgement(success, nearest, masked_mean(error, region), outside_error, worst_window, tuple(reason))


def l1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """L1 distance per pixel `[...]`: mean absolute difference over the channels of uint8 `[..., 3]`, in [0, 1]."""
    difference = np.maximum(a, b)
    difference -= np.minimum(a, b)
    distance: np.ndarray = difference.astype(np.float32) @ np.ones(3, np.float32)  # nine times as fast as mean(-1)
    distance /= 3
    distance /= 255
    return distance


def masked_mean(values: np.ndarray, mask: np.ndarray, min_px: int = 1) -> np.ndarray:
    """float32 [N]: sum of `[N, 64, 64]` over a bool mask, divided by the larger of the mask's size and `min_px`."""
    return ((values * mask).sum((1, 2)) / np.maximum(mask.sum((1, 2)), min_px)).astype(np.float32)


def _check_images(output: np.ndarray, before: np.ndarray, exact: np.ndarray) -> None:
    for name, images in (("output", output), ("before", before), ("exact", exact)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape != exact.shape:
            raise ValueError(f"{name} must be uint8 {list(exact.shape)} like exact, got {images.dtype} {list(images.shape)}")


def _nearest(
    output: np.ndarray, before: np.ndarray, exact: np.ndarray, alternatives: np.ndarray, region: np.ndarray, n: int
) -> int:
    """The candidate nearest to the output of edit n: EXACT, INPUT or 2 + alternative. EXACT loses ties."""
    pixels = np.flatnonzero(region)
    inside = np.empty((2 + len(alternatives), len(pixels), 3), np.uint8)  # [2 + K, P, 3]
    for k, image in enumerate((exact, before, *alternatives)):
        np.take(image.reshape(-1, 3), pixels, axis=0, out=inside[k], mode="clip")  # the default mode copies `out`
    exact_inside = inside[EXACT].tobytes()
    equal = [k for k in range(1, len(inside)) if inside[k].tobytes() == exact_inside]
    if equal:
        name = "the input" if equal[0] == INPUT else f"alternative {equal[0] - 2}"
        raise ValueError(f"{name} of edit {n} equals the exact result inside the region; pass only other values")
    error = l1(inside, output.reshape(-1, 3)[pixels][None]).mean(1)  # [2 + K]
    order = np.argsort(error, kind="stable")
    exact_is_tied = order[0] == EXACT and error[order[1]] == error[EXACT]
    return int(order[1] if exact_is_tied else order[0])


def fault_inside(nearest: int) -> str:
    """The fault inside the region if the output is nearest to this image; '' for the exact result."""
    if nearest == INPUT:
        return "inside the region the output is nearest to the input: nothing was edited"
    return "" if nearest == EXACT else f"inside the region the output is nearest to alternative {nearest - 2}"
