"""Composite an edit made at a smaller size into the full-size image.

Outside the changed region and a border around it, the result is bit-identical to the image; inside, it is the upsampled edit.
Shapes: images are float [1, 3, H, W] in [-1, 1]; small copies are [1, 3, h, w]. All of this is ours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from emuedit.core.soft_mask import dilate

BORDER_PX = 1.0
"""Border in px of the small size: the changed region is dilated by it, and the edit fades into the image over it."""


MIN_CHANGE = 0.5
"""Minimum probability of a changed latent cell."""


def keep_unchanged_cells(before: Tensor, after: Tensor, change: Tensor, factor: int) -> Tensor:
    """`after` where a latent cell changes, else exactly `before`; images [B, 3, H, W].

    change: probability per cell, [B, 1, h, w]; a cell has `factor` px per side, and the cells cover the images.
    """
    changed = F.interpolate((change >= MIN_CHANGE).to(after), scale_factor=factor, mode="nearest")
    return torch.where(changed[:, :, : after.shape[-2], : after.shape[-1]] > 0, after, before)


def seam(before: Tensor, after: Tensor) -> float:
    """Mean increase in edge contrast across the boundary of the changed region.

    Mean over neighbouring pixels of which one changed: |difference in after| - |difference in before|, mean over RGB in [0, 1];
    images [B, 3, H, W] in [-1, 1]. 0 without a boundary; negative if the boundary became smoother.
    """
    changed = changed_pixels(before, after)
    jumps = []
    for dim in (2, 3):
        steps = [image.diff(dim=dim).abs().mean(1, keepdim=True) / 2 for image in (before, after)]
        at_border = changed.narrow(dim, 1, changed.shape[dim] - 1) != changed.narrow(dim, 0, changed.shape[dim] - 1)
        jumps.append((steps[1] - steps[0])[at_border])
    together = torch.cat(jumps)
    return float(together.mean()) if len(together) else 0.0


def changed_pixels(before: Tensor, after: Tensor) -> Tensor:
    """Where any channel differs: bool [B, 1, H, W]. Raises ValueError for images of different shapes."""
    if before.shape != after.shape:
        raise ValueError(f"want two images of equal shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    return (before != after).any(1, keepdim=True)


def shrink(image: Tensor, height: int, width: int) -> Tensor:
    """Downsample an image [1, 3, H, W] to [1, 3, height, width], bicubic with antialiasing, clamped to [-1, 1]."""
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)


def enlarge_edit(
    image: Tensor, before: Tensor, after: Tensor, keeps_detail: bool = False, is_full: bool = False, border_px: float = BORDER_PX
) -> Tensor:
    """Apply the edit `before` -> `after` [1, 3, h, w] to image [1, 3, H, W]; `before` is its smaller copy.

    keeps_detail: add the difference of the edit to the image, which keeps fine detail (a change of light); else replace the
    region by the upsampled result (another object). The region: the full image with `is_full`, else the changed pixels,
    dilated by `border_px` and upsampled. Outside of it the result is bit-identical to `image`. An edit without changes returns
    `image`.
    """
    changed = changed_pixels(before, after)
    if not changed.any():
        return image
    changed |= is_full
    size = image.shape[-2:]
    mask = F.interpolate(dilate(changed.to(image.dtype), border_px), size, mode="bilinear")  # [1, 1, H, W]
    top, bottom, left, right = _box(mask[0, 0] > 0)
    window = (..., slice(top, bottom), slice(left, right))
    if keeps_detail:
        edited = image + F.interpolate(after - before, size, mode="bilinear")
    else:
        edited = F.interpolate(after, size, mode="bicubic")
    result = image.clone()
    blended = torch.lerp(image[window], edited.clamp(-1, 1)[window], mask[window])
    result[window] = torch.where(mask[window] > 0, blended, image[window])
    return result


def _box(inside: Tensor) -> tuple[int, int, int, int]:
    """First and last row + 1, first and last column + 1 of the true elements of bool [H, W]; at least one is true."""
    rows, columns = (inside.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
