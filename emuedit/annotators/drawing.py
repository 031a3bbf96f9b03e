"""Drawing code for photographs and the toy world: box outlines, and the filters of the task `color`."""

from __future__ import annotations

import numpy as np

COLOUR_FILTERS = (
    "brighten", "darken", "more contrast", "less contrast", "saturate", "desaturate", "hue", "blur", "sharpen"
)  # fmt: skip
"""Names of the filters, as in the LLM's answers for the task `color`."""
_SIDE_PER_SIGMA = {"blur": 128, "sharpen": 256}
"""Longer side of an image per standard deviation of the filter's Gaussian, so that the effect is as visible in large images: 4 px
and 2 px at 512 px. Ours."""
_REC_601 = np.array([0.299, 0.587, 0.114], np.float32)


def luma(images: np.ndarray) -> np.ndarray:
    """Rec. 601 luma [...] of float32 RGB [..., 3] in [0, 1]."""
    return images @ _REC_601


def box_outline(boxes_px: np.ndarray, height: int, width: int, line_px: int) -> np.ndarray:
    """Masks bool [N, height, width] of outlines, `line_px` wide, just outside the boxes [N, 4] (x0 y0 x1 y1).

    An empty box has no line.
    """
    box = np.concatenate([np.floor(boxes_px[:, :2]), np.ceil(boxes_px[:, 2:])], 1)[:, None]
    not_empty = (boxes_px[:, 2] > boxes_px[:, 0]) & (boxes_px[:, 3] > boxes_px[:, 1])

    def inside(margin: int) -> np.ndarray:
        columns = (np.arange(width) >= box[..., 0] - margin) & (np.arange(width) < box[..., 2] + margin)
        rows = (np.arange(height) >= box[..., 1] - margin) & (np.arange(height) < box[..., 3] + margin)
        return rows[:, :, None] & columns[:, None, :]

    return np.asarray(inside(line_px) & ~inside(0) & not_empty[:, None, None])


def apply_colour_filter(name: str, images: np.ndarray) -> np.ndarray:
    """Apply the filter `name` of `COLOUR_FILTERS` to images float32 [N, H, W, 3] in [0, 1].

    The result may exceed [0, 1]. The strengths are ours. Raises KeyError for an unknown name.
    """
    if name in _SIDE_PER_SIGMA:
        blurred = _blur(images, max(images.shape[1:3]) / _SIDE_PER_SIGMA[name])
        return blurred if name == "blur" else images + 1.5 * (images - blurred)
    if name == "hue":  # rotate by a third of the colour wheel: red to green, green to blue
        return images[..., [2, 0, 1]]
    grey = luma(images)[..., None]
    mean = grey.mean((1, 2), keepdims=True)
    origin, factor = {
        "brighten": (np.ones_like(mean), 0.75),
        "darken": (np.zeros_like(mean), 0.60),
        "more contrast": (mean, 1.6),
        "less contrast": (mean, 0.5),
        "saturate": (grey, 1.8),
        "desaturate": (grey, 0.15),
    }[name]
    return origin + factor * (images - origin)


def _blur(images: np.ndarray, sigma_px: float) -> np.ndarray:
    """Convolve images [N, H, W, 3] with a Gaussian; up to 1 px with the binomial kernel of order 4, whose deviation is 1 px."""
    if sigma_px > 1:
        from scipy.ndimage import gaussian_filter

        return np.asarray(gaussian_filter(images, (0, sigma_px, sigma_px, 0), mode="nearest", truncate=3))
    height, width = images.shape[1:3]
    kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    rows = np.sum([k * padded[:, i : i + height] for i, k in enumerate(kernel)], axis=0)
    blurred: np.ndarray = np.sum([k * rows[:, :, i : i + width] for i, k in enumerate(kernel)], axis=0)
    return blurred
