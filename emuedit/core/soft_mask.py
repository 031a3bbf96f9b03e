"""Soft masks: 1 where the edit applies, 0 where the source is preserved.

M = clip(w_p P + w_s S + w_b B, 0, 1). P is the precise mask of an object, S is P dilated and blurred, B is its filled
bounding box; the weights sum to 1. The three masks are Emu Edit's (arXiv 2311.10089): with only the precise mask, a
removed object may reappear as a similar one. The weighted sum, the radius and the blur are ours.

Shapes: masks are float [B, 1, H, W] in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def from_uint8(mask: Tensor) -> Tensor:
    """Convert masks: uint8 [B, H, W] in 0..255, or bool -> float32 [B, 1, H, W] in [0, 1]."""
    scale = 1.0 if mask.dtype == torch.bool else 255.0
    return mask[:, None].to(torch.float32) / scale


def soft_mask(P: Tensor, w_p: float, w_s: float, w_b: float, radius_px: float, sigma_px: float) -> Tensor:
    """Compute the soft mask M of the precise mask P, [B, 1, H, W].

    Raises ValueError for weights that are negative or do not sum to 1, and for a P that is not a mask.
    """
    _check(P)
    if min(w_p, w_s, w_b) < 0 or not math.isclose(w_p + w_s + w_b, 1, abs_tol=1e-6):
        raise ValueError(f"the weights of P, S and B must be at least 0 and sum to 1, got {w_p}, {w_s}, {w_b}")
    M = w_p * P
    if w_s:
        M = M + w_s * blur(dilate(P, radius_px), sigma_px)
    if w_b:
        M = M + w_b * box(P)
    return M.clamp(0, 1)


def dilate(P: Tensor, radius_px: float) -> Tensor:
    """Dilate by a disc: every pixel gets the maximum within `radius_px`; [B, 1, H, W].

    Binary masks use a distance transform, whose cost does not depend on the radius.
    """
    _check(P)
    if radius_px < 0:
        raise ValueError(f"radius_px must be at least 0, got {radius_px}")
    if bool(((P == 0) | (P == 1)).all()):
        return torch.stack([_dilate_binary(mask, radius_px) for mask in P])
    out = P
    reach = int(radius_px)
    padded = F.pad(P, (reach,) * 4)
    height, width = P.shape[-2:]
    for dy in range(-reach, reach + 1):
        half = int(math.sqrt(radius_px**2 - dy**2))  # half the width of the disc in this row
        rows = padded[..., reach + dy : reach + dy + height, reach - half : reach + half + width]
        out = torch.maximum(out, F.max_pool2d(rows, (1, 2 * half + 1), stride=1))
    return out


def _dilate_binary(mask: Tensor, radius_px: float) -> Tensor:
    """Dilate a binary mask; [1, H, W]."""
    if not mask.any():
        return mask
    distance_px = distance_transform_edt(mask[0].cpu().numpy() == 0)
    return torch.from_numpy(distance_px <= radius_px)[None].to(mask)


def blur(P: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur with replicated borders; [B, 1, H, W]. sigma_px 0 returns P itself."""
    _check(P)
    if sigma_px < 0:
        raise ValueError(f"sigma_px must be at least 0, got {sigma_px}")
    if sigma_px == 0:
        return P
    reach = max(1, math.ceil(3 * sigma_px))
    x = torch.arange(-reach, reach + 1, dtype=P.dtype, device=P.device)
    kernel = torch.exp(-0.5 * (x / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(P, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])


def box(P: Tensor) -> Tensor:
    """Filled bounding box of the pixels above one half, all zeros if there are none; [B, 1, H, W]."""
    _check(P)
    inside = P > 0.5
    return (_span(inside.any(-1, keepdim=True), -2) & _span(inside.any(-2, keepdim=True), -1)).to(P.dtype)


def resize(M: Tensor, height: int, width: int) -> Tensor:
    """Resize M to [B, 1, height, width] by area averaging, which preserves soft edges."""
    _check(M)
    return F.interpolate(M, (height, width), mode="area")


def _span(occupied: Tensor, dim: int) -> Tensor:
    """True from the first to the last true element along `dim`."""
    counts = occupied.to(torch.int32)
    after_first = counts.cumsum(dim) > 0
    before_last = counts.flip(dim).cumsum(dim).flip(dim) > 0
    return after_first & before_last


def _check(mask: Tensor) -> None:
    want = "a mask must be float [B, 1, H, W] in [0, 1]"
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
        raise ValueError(f"{want}, got {tuple(mask.shape)} {mask.dtype}; call soft_mask.from_uint8 first")
    if mask.numel():
        low, high = mask.aminmax()
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"{want}, got values in [{low:.4g}, {high:.4g}]; clamp it first")
