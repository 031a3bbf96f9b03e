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

    def mean(planes: Tensor) -> Tensor:
        """Means over the windows, [C, H, W]."""
        rows = F.avg_pool2d(planes[:, None], (1, 2 * radius_px + 1), 1, (0, radius_px), count_include_pad=False)
        return F.avg_pool2d(rows, (2 * radius_px + 1, 1), 1, (radius_px, 0), count_include_pad=False)[:, 0]

    I, p = guide.double(), values.double()  # noqa: E741  double: the covariance is a difference of nearly equal numbers
    mean_I, mean_p = mean(I), mean(p)
    first, second = torch.triu_indices(3, 3).tolist()  # of the six different entries of Cov(I)
    covariance = mean(I[first] * I[second]) - mean_I[first] * mean_I[second]
    covariance += epsilon * torch.eye(3, dtype=I.dtype, device=I.device)[first, second].view(6, 1, 1)
    a = _solve_symmetric(covariance, mean(I * p) - mean_I * mean_p)
    b = mean_p - (a * mean_I).sum(0, keepdim=True)
    return ((mean(a) * I).sum(0, keepdim=True) + mean(b)).to(values.dtype)


def _solve_symmetric(matrix: Tensor, vector: Tensor) -> Tensor:
    """x with M x = v in every pixel, by the adjugate of M. matrix: upper triangle by rows, [6, H, W]; vector, x: [3, H, W]."""
    xx, xy, xz, yy, yz, zz = matrix
    adjugate = [
        [yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy],
        [xz * yz - xy * zz, xx * zz - xz * xz, xy * xz - xx * yz],
        [xy * yz - xz * yy, xy * xz - xx * yz, xx * yy - xy * xy],
    ]
    determinant = xx * adjugate[0][0] + xy * adjugate[0][1] + xz * adjugate[0][2]
    return torch.stack([sum(entry * v for entry, v in zip(row, vector, strict=True)) / determinant for row in adjugate])
