"""Sequential edit thresholding: in multi-turn editing, pixels with little change are copied from the previous turn.

Emu Edit (arXiv 2311.10089, multi-turn editing): d = sum over RGB of |c_I^{s+1} - c_I^s|, d_bar = low-pass(d), and the
old pixel is kept where d_bar < alpha = 0.03. The paper states neither the colour range nor the filter. Our choice: colours in
[0, 1], so d is in [0, 3], and a Gaussian filter.

An autoencoder changes every pixel slightly, even without an edit, and d includes this error. If c_I^s is replaced by its
reconstruction (ours), d does not: an edit that changes no latent keeps every pixel.

The alpha of a task that was learned from examples is larger if its results keep a part of the image, such as the objects of a
cutout: `edge_aware_weight` (ours) then takes what the network redraws from the image.
"""

from torch import Tensor

from emuedit.core.guided_filter import guided_filter
from emuedit.core.soft_mask import blur

SIGMA_PX = 1.0
EDGE_LOW, EDGE_HIGH = 0.5, 0.9
"""Filtered change of pixels that are kept and of pixels that are edited, as fractions of alpha. Ours."""


def exceeds_threshold(before: Tensor, after: Tensor, alpha: float, sigma_px: float = SIGMA_PX) -> Tensor:
    """Where d_bar >= alpha: images [B, 3, H, W] in [-1, 1] -> bool [B, 1, H, W]. `before` may be a reconstruction.

    Raises ValueError for images of different or wrong shapes.
    """
    return blur((_change(before, after) / 3).clamp(max=1), sigma_px) * 3 >= alpha  # clamp: rounding may exceed 1


def edge_aware_weight(image: Tensor, before: Tensor, after: Tensor, alpha: float, radius_px: int) -> Tensor:
    """Weight of the edit, [1, H, W] in [0, 1], whose borders follow the edges of the image.

    In an area of equal change it is 0 up to a change of EDGE_LOW alpha, 1 from EDGE_HIGH alpha on, and linear between them.
    image, before, after: [3, H, W] in [-1, 1]; d is the change from `before`, the image or its reconstruction. min(d / alpha, 1),
    filtered with the image as the guide (`guided_filter`, windows of `radius_px`), is mapped linearly from
    [EDGE_LOW, EDGE_HIGH] to [0, 1]. Raises ValueError for images of different or wrong shapes.
    """
    change = (_change(before[None], after[None])[0] / alpha).clamp(max=1)
    filtered = guided_filter((image + 1) / 2, change, radius_px)
    return ((filtered - EDGE_LOW) / (EDGE_HIGH - EDGE_LOW)).clamp(0, 1)


def _change(before: Tensor, after: Tensor) -> Tensor:
    """d, [B, 1, H, W] in [0, 3]."""
    if before.shape != after.shape or before.ndim != 4 or before.shape[1] != 3:
        raise ValueError(f"want two images [B, 3, H, W] of one size, got {tuple(before.shape)} and {tuple(after.shape)}")
    return (after - before).abs().sum(1, keepdim=True) / 2  # / 2: from the range [-1, 1] to [0, 1]
