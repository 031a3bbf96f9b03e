"""An edit that was made at a smaller size, carried over to the picture at its own size.

Outside a stated border around what the edit changed, the result equals the picture bit for bit; inside, it is the enlarged edit.
Shapes: images are float [1, 3, H, W] in [-1, 1]; small ones have the same content at [1, 3, h, w]. All of it is ours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from emuedit.core.soft_mask import dilate

BORDER_PX = 1.0
"""Pixels of the small size by which the changed region is widened, and over which the edit fades into the picture."""


MIN_CHANGE = 0.5
"""Probability from which on a cell of the latents counts as changed."""


def keep_unchanged_cells(before: Tensor, after: Tensor, change: Tensor, factor: int) -> Tensor:
    """`after` where a cell of the latents changes, else `before` bit for bit; images [B, 3, H, W].

    change: the probability of each cell, [B, 1, h, w]; a cell has `factor` px a side, and the cells cover the images.
    """
    changed = F.interpolate((change >= MIN_CHANGE).to(after), scale_factor=factor, mode="nearest")
    return torch.where(changed[:, :, : after.shape[-2], : after.shape[-1]] > 0, after, before)


def seam(before: Tensor, after: Tensor) -> float:
    """How much steeper the border of what changed became: mean over the pairs of neighbours of which one changed.

    |difference of the pair in after| - |that in before|, mean over RGB in [0, 1]; images [B, 3, H, W] in [-1, 1]. 0 where
    nothing or everything changed; negative where the border became smoother.
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
    """Where any of the channels differs: bool [B, 1, H, W]. Raises ValueError for images of different shapes."""
    if before.shape != after.shape:
        raise ValueError(f"want two images of one shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    return (before != after).any(1, keepdim=True)


def shrink(image: Tensor, height: int, width: int) -> Tensor:
    """An image [1, 3, H, W] at [1, 3, height, width], by bicubic interpolation with antialiasing, clamped to [-1, 1]."""
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)


def enlarge_edit(
    image: Tensor, before: Tensor, after: Tensor, keeps_detail: bool = False, border_px: float = BORDER_PX
) -> Tensor:
    """The edit `before` -> `after` [1, 3, h, w] applied to image [1, 3, H, W], of which `before` is the smaller copy.

    keeps_detail: the difference that the edit made is added to the picture, which keeps its fine detail (a change of light);
    else the enlarged result replaces it (another object). Where the mask of changed pixels, dilated by `border_px` and enlarged,
    is zero, the result equals `image` bit for bit. An edit that changes nothing returns `image` itself.
    """
    changed = changed_pixels(before, after)
    if not changed.any():
        return image
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
