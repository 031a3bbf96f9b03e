"""The area of an image that an edit changed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emuedit.data.image_io import Pixels

MAX_SHIFT_PX = 0.5
"""Shift above which the text of a `ChangedArea` mentions it; estimates err by 0.05 px (median). Ours."""


@dataclass(frozen=True)
class ChangedArea:
    """The pixels that an edit changed; all others are bit-identical."""

    share: float
    """Fraction of changed pixels, in [0, 1]."""
    box: tuple[int, int, int, int] | None
    """Left, top, right and bottom in px, the latter two exclusive; None if nothing changed."""
    shift_px: float | None = None
    """Shift of the edited image against its input, in px of the size at which it was edited, estimated outside the changed pixels
    before these were copied; None: not measured, or undefined. The changed pixels are misplaced by as much."""

    def __str__(self) -> str:
        if self.box is None:
            return "no pixel changed"
        left, top, right, bottom = self.box
        shift = f"; the edit is shifted by {self.shift_px:.1f} px" if (self.shift_px or 0) > MAX_SHIFT_PX else ""
        return f"{self.share:.1%} of the pixels changed, in x {left} to {right}, y {top} to {bottom}{shift}"


def changed_mask(before: Pixels, after: Pixels) -> npt.NDArray[np.bool_]:
    """Where two images uint8 [H, W, 3] differ: bool [H, W]. Raises ValueError for images of different sizes."""
    if before.shape != after.shape:
        raise ValueError(f"want two images of one size, got {before.shape} and {after.shape}")
    mask: npt.NDArray[np.bool_] = (before != after).any(axis=-1)
    return mask


def measure(before: Pixels, after: Pixels, shift_px: float | None = None) -> ChangedArea:
    """Share and bounding box of the pixels that differ, in uint8 [H, W, 3]. shift_px: see `ChangedArea`."""
    mask = changed_mask(before, after)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return ChangedArea(0.0, None, shift_px)
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return ChangedArea(float(mask.mean()), box, shift_px)


def mask_image(mask: npt.NDArray[np.bool_]) -> Pixels:
    """A mask bool [H, W] as a black image uint8 [H, W, 3] that is white where the mask is True."""
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
