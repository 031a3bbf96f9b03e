"""What every world draws alike: a line around a box, and the filters of the task `color`. numpy only."""

from __future__ import annotations

import numpy as np

FILTERS = ("brighten", "darken", "more contrast", "less contrast", "saturate", "desaturate", "hue", "blur", "sharpen")
"""Their names, as the agent of the task `color` says them."""
_REC_601 = np.array([0.299, 0.587, 0.114], np.float32)


def luma(p: np.ndarray) -> np.ndarray:
    """Rec. 601 luma of float32 [..., 3] in [0, 1]."""
    return p @ _REC_601


def frame(boxes_px: np.ndarray, height: int, width: int, line_px: int) -> np.ndarray:
    """bool [N, height, width]: a line of `line_px` just outside of the boxes [N, 4] (x0 y0 x1 y1); none for an empty box."""
    box = np.concatenate([np.floor(boxes_px[:, :2]), np.ceil(boxes_px[:, 2:])], 1)[:, None]
    found = (boxes_px[:, 2] > boxes_px[:, 0]) & (boxes_px[:, 3] > boxes_px[:, 1])

    def inside(margin: int) -> np.ndarray:
        columns = (np.arange(width) >= box[..., 0] - margin) & (np.arange(width) < box[..., 2] + margin)
        rows = (np.arange(height) >= box[..., 1] - margin) & (np.arange(height) < box[..., 3] + margin)
        return rows[:, :, None] & columns[:, None, :]

    return np.asarray(inside(line_px) & ~inside(0) & found[:, None, None])


def filtered(name: str, p: np.ndarray) -> np.ndarray:
    """Filter `name` of `FILTERS` upon pictures float32 [N, H, W, 3] in [0, 1]; the result may lie beyond. Strengths: ours."""
    if name in ("blur", "sharpen"):
        height, width = p.shape[1:3]
        kernel = np.array([1, 4, 6, 4, 1], np.float32) / 16
        padded = np.pad(p, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
        rows = np.sum([k * padded[:, i : i + height] for i, k in enumerate(kernel)], axis=0)
        soft: np.ndarray = np.sum([k * rows[:, :, i : i + width] for i, k in enumerate(kernel)], axis=0)
        return soft if name == "blur" else p + 1.5 * (p - soft)
    if name == "hue":  # a third of the wheel: red to green, green to blue
        return p[..., [2, 0, 1]]
    grey = luma(p)[..., None]
    mean = grey.mean((1, 2), keepdims=True)
    origin, share = {
        "brighten": (np.ones_like(mean), 0.75),
        "darken": (np.zeros_like(mean), 0.60),
        "more contrast": (mean, 1.6),
        "less contrast": (mean, 0.5),
        "saturate": (grey, 1.8),
        "desaturate": (grey, 0.15),
    }[name]
    return origin + share * (p - origin)
