"""Sub-pixel registration: estimate the shift between two images by weighted least squares.

Lucas and Kanade, "An Iterative Image Registration Technique with an Application to Stereo Vision", IJCAI 1981, for one
shift d of the whole image: minimise the sum of W (target(x) - source(x - d))^2 over d by Gauss-Newton steps.
Phase correlation would apply the weights as a window on both images; the window does not move with the content, which
biases small shifts towards zero. The margin, the flatness bound and the stopping rule are ours.
"""

import math

import torch
from torch import Tensor

MARGIN_PX = 3
"""Width of the ignored border, whose pixels may come from outside the image after a shift."""
FLAT = 1e-5
"""Mean squared gradient per pixel, colours in [-1, 1], below which an image is flat in some direction."""
STEPS = 20
"""Maximum number of Gauss-Newton steps."""
CLOSE_PX = 1e-3
"""Step length in px below which the iteration ends."""


def estimate_shift(source: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float] | None:
    """Estimate the shift (dx, dy) in px of `target` relative to `source`, right and down.

    Images are [3, H, W] in [-1, 1], weight is [H, W] >= 0. Meant for shifts of one or two pixels. Returns None if the shift is
    undefined: all weights are 0, the weighted part is flat in some direction, or no shift explains the
    difference (the iteration leaves the margin or does not converge). Raises ValueError for different sizes.
    """
    if source.shape != target.shape or source.shape[1:] != weight.shape:
        got = f"{tuple(source.shape)}, {tuple(target.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"want two images [3, H, W] and a weight [H, W] of one size, got {got}")
    W, inner = torch.zeros_like(weight, dtype=torch.float64), (slice(MARGIN_PX, -MARGIN_PX),) * 2
    W[inner] = weight[inner].double()
    if not W.any():
        return None
    source, target = source.double(), target.double()
    d = W.new_zeros(2)
    for _ in range(STEPS):
        shifted = _shift_image(source, d)
        gradients = torch.stack(torch.gradient(shifted, dim=(2, 1)))  # d/dx, d/dy: [2, 3, H, W]
        A = torch.einsum("ichw,jchw,hw->ij", gradients, gradients, W)
        if torch.linalg.eigvalsh(A)[0] < FLAT * W.sum():
            return None
        step = torch.linalg.solve(A, torch.einsum("ichw,chw,hw->i", gradients, shifted - target, W))
        d = d + step
        if d.abs().max() > MARGIN_PX:
            return None
        if step.norm() < CLOSE_PX:
            return float(d[0]), float(d[1])
    return None


def _shift_image(image: Tensor, d: Tensor) -> Tensor:
    """image(x - d), [3, H, W]; d is (dx, dy) in px."""
    return _shift_along(_shift_along(image, float(d[0]), 2), float(d[1]), 1)


def _shift_along(image: Tensor, d: float, dim: int) -> Tensor:
    """Shift an image by d px along one dimension, by cubic convolution with a = -0.5 (Keys, IEEE TASSP 29, 1981).

    torch's own bicubic resampling has a = -0.75, which does not reproduce a linear ramp.
    """
    n = math.floor(-d)
    f = -d - n
    taps = (-f + 2 * f**2 - f**3, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, -(f**2) + f**3)
    first = torch.arange(image.shape[dim], device=image.device) + n - 1  # pixel under the first tap
    parts = [tap / 2 * image.index_select(dim, (first + i).clamp(0, len(first) - 1)) for i, tap in enumerate(taps)]
    return torch.stack(parts).sum(0)
