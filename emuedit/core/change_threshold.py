"""Sequential edit thresholding: in multi-turn editing, pixels with little change are copied from the previous turn.

Emu Edit (arXiv 2311.10089, multi-turn editing): d = sum over RGB of |c_I^{s+1} - c_I^s|, d_bar = low-pass(d), and the
old pixel is kept where d_bar < alpha = 0.03. The paper states neither the colour range nor the filter. Our choice: colours in
[0, 1], so d is in [0, 3], and a Gaussian filter.

An autoencoder changes every pixel slightly, even without an edit, and d includes this error. If c_I^s is replaced by its
reconstruction (ours), d does not: an edit that changes no latent keeps every pixel.
"""

from torch import Tensor

from emuedit.core.soft_mask import blur

SIGMA_PX = 1.0


def exceeds_threshold(before: Tensor, after: Tensor, alpha: float, sigma_px: float = SIGMA_PX) -> Tensor:
    """Where d_bar >= alpha: images [B, 3, H, W] in [-1, 1] -> bool [B, 1, H, W]. `before` may be a reconstruction.

    Raises ValueError for images of different or wrong shapes.
    """
    if before.shape != after.shape or before.ndim != 4 or before.shape[1] != 3:
        raise ValueError(f"want two images [B, 3, H, W] of one size, got {tuple(before.shape)} and {tuple(after.shape)}")
    d = (after - before).abs().sum(1, keepdim=True) / 2  # / 2: from the range [-1, 1] to [0, 1]
    return blur((d / 3).clamp(max=1), sigma_px) * 3 >= alpha  # clamp: rounding may exceed 1
