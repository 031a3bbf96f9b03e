"""Composite an edit into its image: with a soft border, and from a smaller size.

Outside the changed region (of an edit made at a smaller size, and a border around it), the result is bit-identical to the image.
Shapes: images are float [1, 3, H, W] in [-1, 1], [B, 3, H, W] where stated; small copies are [1, 3, h, w]. All of this is ours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from emuedit.core.soft_mask import dilate

BORDER_PX = 1.0
"""Dilation of the changed region in px of the small size. The bilinear enlargement of the mask adds half a pixel: the weight of
the edit is 1 up to BORDER_PX - 0.5 px outside of the changed region, and reaches 0 at BORDER_PX + 0.5 px."""
MAX_DETAIL_GAIN = 3.0
"""Maximum factor on the detail of an enlarged edit."""
MIN_DETAIL = 1 / 255
"""Root mean square detail of a small copy below which it is flat; half a level of a byte."""
MIN_CHANGE = 0.5
"""Minimum probability of a changed latent cell."""


def changed_cells(change: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Pixels of the latent cells that change: bool [B, 1, height, width].

    change: probability per cell, [B, 1, h, w]; a cell has `factor` px per side, and the cells cover height x width pixels.
    """
    changed = F.interpolate((change >= MIN_CHANGE).float(), scale_factor=factor, mode="nearest")
    return changed[:, :, :height, :width] > 0


def soft_border(changed: Tensor, border_px: float) -> Tensor:
    """Weight of the edit: exactly 0 outside the changed region, exactly 1 deeper than `border_px` inside, a linear ramp between.

    changed: bool [B, 1, H, W] -> float32 [B, 1, H, W]. A pixel whose nearest unchanged pixel is d px away (Euclidean distance
    of the centres) has the weight min(1, d / (border_px + 1)), so weights of neighbours differ by at most 1 / (border_px + 1).
    This bounds the gradient across the border between two flat areas, as a fraction of their difference. The image's edges
    are no border. 0 px is the hard edge.
    """
    if border_px == 0 or not changed.any():
        return changed.float()
    depths = [torch.from_numpy(_depth_px(mask.cpu().numpy())) for mask in changed[:, 0]]
    return (torch.stack(depths)[:, None] / (border_px + 1)).clamp(max=1).float().to(changed.device)


def _depth_px(changed: np.ndarray) -> np.ndarray:
    """Distance in px of the pixels of bool [H, W] to the nearest False one: 0 there, infinite if there is none."""
    if changed.all():
        return np.full(changed.shape, np.inf)
    distance_px: np.ndarray = distance_transform_edt(changed)
    return distance_px


def window_border(window: Sequence[slice], size: Sequence[int], border_px: float) -> Tensor:
    """Weight of an edit of a window: the ramp of `soft_border` inwards from its sides, except those of the image.

    window: rows and columns in an image of `size` (H, W) px; float32 [1, 1, rows, columns].
    """
    changed = np.pad(
        np.ones([side.stop - side.start for side in window], bool),
        [(int(side.start > 0), int(side.stop < length)) for side, length in zip(window, size, strict=True)],
    )
    weight = soft_border(torch.from_numpy(changed)[None, None], border_px)
    rows, columns = (slice(int(side.start > 0), int(side.start > 0) + side.stop - side.start) for side in window)
    return weight[..., rows, columns]


def blend(before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """`after` where the weight [B, 1, H, W] is 1, `before` where it is 0, both bit for bit; images float [B, 3, H, W]."""
    return torch.where(weight > 0, torch.lerp(before, after, weight), before)  # lerp alone would pass on a NaN at weight 0


def seam(before: Tensor, after: Tensor, depth_px: int = 0) -> float:
    """Mean increase in edge contrast across the boundary of the changed region, eroded by `depth_px`.

    Mean over neighbouring pixels of which one is in the region: |difference in after| - |difference in before|, mean over RGB in
    [0, 1]; images [B, 3, H, W] in [-1, 1]. 0 without a boundary; negative if the boundary became smoother. A soft border of
    b px spreads over the depths 0 to b.
    """
    changed = changed_pixels(before, after)
    if depth_px:
        depths = np.stack([_depth_px(mask) for mask in changed[:, 0].cpu().numpy()])
        changed = torch.from_numpy(depths > depth_px)[:, None]
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
    image: Tensor,
    before: Tensor,
    after: Tensor,
    keeps_detail: bool = False,
    is_full: bool = False,
    border_px: float = BORDER_PX,
    reconstruction: Tensor | None = None,
) -> Tensor:
    """Apply the edit `before` -> `after` [1, 3, h, w] to image [1, 3, H, W]; `before` is its smaller copy.

    keeps_detail: up(after) + g (image - up(before)), with g = `detail_gain` and bilinear upsampling: the image keeps its fine
    detail, as strong as the edit leaves it (a change of light, blur). `before` may then be the autoencoder's reconstruction of
    the copy. If it is not, g is measured from `reconstruction`, since `after` lacks the detail that the autoencoder loses.
    Else replace the region by the upsampled result (another object). The region: the full image with `is_full`, else the
    changed pixels, dilated by `border_px` and upsampled. Outside of it the result is bit-identical to `image`. An edit without
    changes returns `image`.
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
        gain = detail_gain(before if reconstruction is None else reconstruction, after)
        edited = F.interpolate(after - gain * before, size, mode="bilinear").add_(image, alpha=gain)  # upsampling is linear
    else:
        edited = F.interpolate(after, size, mode="bicubic")
    result = image.clone()
    result[window] = blend(image[window], edited.clamp(-1, 1)[window], mask[window])
    return result


def detail_gain(before: Tensor, after: Tensor) -> float:
    """Factor that an edit `before` -> `after` [1, 3, h, w] applies to the finest detail, in [0, MAX_DETAIL_GAIN].

    <hp(after), hp(before)> / <hp(before), hp(before)> over all pixels and channels, the least-squares factor; hp is an image
    minus its 3 x 3 mean. 0: the detail is blurred away, 1: it keeps its strength, also if `before` is flat.
    """
    fine_before, fine_after = (_high_pass(image) for image in (before, after))
    energy = float(fine_before.square().mean())
    if energy < MIN_DETAIL**2:
        return 1.0
    return min(max(0.0, float((fine_after * fine_before).mean()) / energy), MAX_DETAIL_GAIN)


def _high_pass(image: Tensor) -> Tensor:
    return image - F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _box(inside: Tensor) -> tuple[int, int, int, int]:
    """First and last row + 1, first and last column + 1 of the true elements of bool [H, W]; at least one is true."""
    rows, columns = (inside.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
