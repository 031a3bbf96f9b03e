"""Call annotators with the inputs that a task needs."""

from typing import Any

import numpy as np


def call(annotators: Any, task: str, images: np.ndarray, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Call annotators with blank words, boxes and masks, except for those in `inputs`."""
    n, *size, _ = images.shape
    blank = {"words": [""] * n, "boxes_px": np.zeros((n, 4), np.float32), "masks": np.zeros((n, *size), bool)}
    targets, valid = annotators(task, images, *(blank | inputs).values())
    assert targets.shape == images.shape
    assert targets.dtype == np.uint8
    assert valid.shape == (n,)
    assert valid.dtype == bool
    return targets, valid
