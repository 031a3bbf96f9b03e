"""How far a picture moved, in parts of a pixel: weighted least squares over what should have stayed.

Lucas and Kanade, "An Iterative Image Registration Technique with an Application to Stereo Vision", IJCAI 1981, for one shift d
of the whole picture: minimise over d the sum of W (target(x) - source(x - d))^2 by Gauss-Newton. Phase correlation would need
the weights as a window on both pictures, and a window stays where it is: it pulls small shifts to zero. Ours: the margin, the
bound on flat pictures, and when to stop.
"""

import math

import torch
from torch import Tensor

MARGIN_PX = 3
"""What lies so near to the border counts for nothing: it may have come from outside."""
FLAT = 1e-5
"""Mean squared slope per pixel, colours in [-1, 1], below which a picture has no structure in some direction."""
STEPS, CLOSE_PX = 20, 1e-3
"""Steps at most, and the step after which there is no need for another."""


def shift(source: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float] | None:
    """(dx, dy) in px by which `target` lies to the right of and below `source`, images [3, H, W] in [-1, 1]; weight [H, W] >= 0.

    None where that is undefined: nothing has weight, what has is flat in some direction, or no shift explains the difference
    (the steps do not come to rest within the margin). Meant for shifts of a pixel or two.
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
        moved = _moved(source, d)
        slopes = torch.stack(torch.gradient(moved, dim=(2, 1)))  # d/dx, d/dy: [2, 3, H, W]
        A = torch.einsum("ichw,jchw,hw->ij", slopes, slopes, W)
        if torch.linalg.eigvalsh(A)[0] < FLAT * W.sum():
            return None
        step = torch.linalg.solve(A, torch.einsum("ichw,chw,hw->i", slopes, moved - target, W))
        d = d + step
        if d.abs().max() > MARGIN_PX:
            return None
        if step.norm() < CLOSE_PX:
            return float(d[0]), float(d[1])
    return None


def _moved(image: Tensor, d: Tensor) -> Tensor:
    """image(x - d), [3, H, W]."""
    return _along(_along(image, float(d[0]), 2), float(d[1]), 1)


def _along(image: Tensor, d: float, dim: int) -> Tensor:
    """Moved along one side by Keys's cubic convolution (IEEE TASSP 29, 1981): torch's own, with a = -0.75, bends a ramp."""
    n = math.floor(-d)
    f = -d - n
    taps = (-f + 2 * f**2 - f**3, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, -(f**2) + f**3)
    at = torch.arange(image.shape[dim], device=image.device) + n - 1
    parts = [tap / 2 * image.index_select(dim, (at + i).clamp(0, len(at) - 1)) for i, tap in enumerate(taps)]
    return torch.stack(parts).sum(0)
