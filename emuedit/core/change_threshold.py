"""Sequential edit thresholding: from turn to turn, a pixel that hardly changed is taken from the turn before.

Emu Edit (arXiv 2311.10089, multi-turn editing): d = sum over RGB of |c_I^{s+1} - c_I^s|, d_bar = low-pass(d), and the old
pixel stays where d_bar < alpha = 0.03. The paper states neither the range of the colours nor the filter: here colours count
in [0, 1], so d is in [0, 3], and the filter is a Gaussian.
"""

import torch
from torch import Tensor

from emuedit.core.soft_mask import blur

ALPHA = 0.03
SIGMA_PX = 1.0


def changed(before: Tensor, after: Tensor, alpha: float = ALPHA, sigma_px: float = SIGMA_PX) -> Tensor:
    """Where d_bar >= alpha: images [B, 3, H, W] in [-1, 1] -> bool [B, 1, H, W]."""
    if before.shape != after.shape or before.ndim != 4 or before.shape[1] != 3:
        raise ValueError(f"want two images [B, 3, H, W] of one size, got {tuple(before.shape)} and {tuple(after.shape)}")
    d = (after - before).abs().sum(1, keepdim=True) / 2  # from [-1, 1] to [0, 1]: halved
    return blur((d / 3).clamp(max=1), sigma_px) * 3 >= alpha  # a value may lie beyond 1 by rounding


def unchanged_kept(before: Tensor, after: Tensor, alpha: float = ALPHA, sigma_px: float = SIGMA_PX) -> Tensor:
    """`after`, but every pixel that did not change is the pixel of `before`, bit for bit; [B, 3, H, W] in [-1, 1]."""
    return torch.where(changed(before, after, alpha, sigma_px), after, before)
