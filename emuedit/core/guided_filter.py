"""Guided filter (He et al., "Guided Image Filtering", ECCV 2010), with a colour guide: smooths a mask along the image's edges."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-3
"""Regularisation for a guide in [0, 1]: windows of a smaller variance are averaged."""


def guided_filter(guide: Tensor, values: Tensor, radius_px: int, epsilon: float = EPSILON) -> Tensor:
    """In every window, values are approximated by a linear function of the guide's colour: q = a . I + b.

    guide: I, float [3, H, W] in [0, 1]; values: p, float [1, H, W] -> q [1, H, W]; windows of (2 radius_px + 1)^2 px, cut off at
    the image's sides. a = (Cov(I) + epsilon U)^-1 Cov(I, p) and b = mean(p) - a . mean(I) in each window, with U the identity;
    a pixel has the mean of a and b over the windows that contain it. Raises ValueError for wrong or unequal shapes.
    """
    if guide.ndim != 3 or values.shape != (1, *guide.shape[1:]) or len(guide) != 3:
        raise ValueError(f"want a guide [3, H, W] and values [1, H, W], got {tuple(guide.shape)} and {tuple(values.shape)}")

    def mean(planes: Tensor) -> Tensor:  # [..., H, W]
        flat = planes.reshape(-1, 1, *planes.shape[-2:])
        return F.avg_pool2d(flat, 2 * radius_px + 1, 1, radius_px, count_include_pad=False).view(planes.shape)

    I, p = guide.double(), values[0].double()  # noqa: E741  the covariance is a difference of nearly equal numbers
    mean_I, mean_p = mean(I), mean(p)
    covariance = mean(I[:, None] * I[None]) - mean_I[:, None] * mean_I[None]  # [3, 3, H, W]
    covariance += epsilon * torch.eye(3, dtype=I.dtype, device=I.device)[..., None, None]
    with_values = mean(I * p) - mean_I * mean_p  # [3, H, W]
    a = torch.linalg.solve(covariance.permute(2, 3, 0, 1), with_values.permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
    b = mean_p - (a * mean_I).sum(0)
    return ((mean(a) * I).sum(0) + mean(b))[None].to(values.dtype)
