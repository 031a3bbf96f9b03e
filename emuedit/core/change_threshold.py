"""Sequential edit thresholding: in multi-turn editing, a pixel that hardly changed is copied from the previous turn.

Emu Edit (arXiv 2311.10089, multi-turn editing): d = sum over RGB of |c_I^{s+1} - c_I^s|, d_bar = low-pass(d), and the
old pixel is kept where d_bar < alpha = 0.03. The paper states neither the range of the colours nor the filter. Our
choice: colours are in [0, 1], so d is in [0, 3], and the filter is a Gaussian.

An autoencoder changes every pixel a little, even without an edit, and this error counts as change in d. With `unchanged`, the
autoencoder's reconstruction of c_I^s, d is measured from that instead (ours): an edit that changes no latent keeps every pixel.
"""

import torch
from torch import Tensor

from emuedit.core.soft_mask import blur

ALPHA = 0.03
SIGMA_PX = 1.0


def change_mask(before: Tensor, after: Tensor, alpha: float = ALPHA, sigma_px: float = SIGMA_PX) -> Tensor:
    """Where d_bar >= alpha: images [B, 3, H, W] in [-1, 1] -> bool [B, 1, H, W]. `before` may be a reconstruction.

    Raises ValueError for images of different or wrong shapes.
    """
    if before.shape != after.shape or before.ndim != 4 or before.shape[1] != 3:
        raise ValueError(f"want two images [B, 3, H, W] of one size, got {tuple(before.shape)} and {tuple(after.shape)}")
    d = (after - before).abs().sum(1, keepdim=True) / 2  # / 2: from the range [-1, 1] to [0, 1]
    return blur((d / 3).clamp(max=1), sigma_px) * 3 >= alpha  # clamp: rounding may carry a value beyond 1


def keep_unchanged(
    before: Tensor, after: Tensor, alpha: float = ALPHA, sigma_px: float = SIGMA_PX, unchanged: Tensor | None = None
) -> Tensor:
    """Replace the unchanged pixels of `after` by those of `before`, bit for bit; [B, 3, H, W] in [-1, 1].

    unchanged: what `after` would be without an edit; None: `before` itself, as in the paper.
    """
    changed = change_mask(before if unchanged is None else unchanged, after, alpha, sigma_px)
    return torch.where(changed, after, before)
