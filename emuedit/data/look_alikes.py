"""Which images look alike: copies in another size, format or compression. Crops, flips and edits are not found. Ours.

Shapes: N and M images.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.spatial.distance import cdist

from emuedit.data.image_io import Pixels

SHAPE = (16, 16, 3)
"""Of a thumbnail."""
EQUAL_LEVELS = 8
"""Largest difference (of 255) of thumbnails of images that look equal. Ours."""
EXACT_LEVELS = 2
"""The same for images of nearly one colour, of which others look alike. Ours."""
_FEWEST_DISTINCT = 1 / 8
"""Share of a thumbnail. Ours."""
COPY_LEVELS = 24
"""Largest difference of thumbnails of an image and a copy: scaling and JPEG of quality 40 change photographs by up to 8, a second
scaling by more; different photographs differ by 100 and more. Ours."""


def thumbnail(pixels: Pixels) -> Pixels:
    """Image uint8 [H, W], [H, W, 3] or [H, W, 4] -> uint8 [16, 16, 3], whatever its aspect ratio."""
    image = Image.fromarray(pixels).convert("RGB")
    return np.asarray(image.resize(SHAPE[:2], Image.Resampling.BOX))


def is_nearly_uniform(picture: Pixels) -> bool:
    """Whether less than an eighth of a thumbnail uint8 [16, 16, 3] differs from its median colour by more than COPY_LEVELS.

    Other images of that kind, such as drawings of poses on black, look like copies of it.
    """
    difference = np.abs(picture - np.median(picture, (0, 1))).max(-1)  # [16, 16]
    return bool((difference > COPY_LEVELS).mean() < _FEWEST_DISTINCT)


def match(thumbnails: Pixels, others: Pixels, max_levels: int) -> npt.NDArray[np.bool_]:
    """Thumbnails uint8 [N, ...] and [M, ...] of equal shapes -> bool [N, M]: whether no value differs by more than max_levels."""
    n_values = math.prod(others.shape[1:])
    flat, flat_others = (stack.reshape(len(stack), n_values).astype(np.float32) for stack in (thumbnails, others))
    return np.asarray(cdist(flat, flat_others, "chebyshev") <= max_levels)


class Matcher:
    """Thumbnails that many others are compared with, with the results of `match`. Safe to use from several threads.

    If no value differs by more than max_levels, the sums of a channel differ by at most max_levels times its number of values, so
    only thumbnails with such sums are compared.
    """

    def __init__(self, thumbnails: Pixels, max_levels: int) -> None:
        """Thumbnails: uint8 [N, 16, 16, 3]."""
        self.max_levels = max_levels
        self._sums = _sums(thumbnails)
        self._values = thumbnails.reshape(len(thumbnails), math.prod(SHAPE)).astype(np.int16)

    def has_match(self, thumbnail: Pixels) -> bool:
        """Whether no value of one of the thumbnails differs from this one, uint8 [16, 16, 3], by more than max_levels."""
        is_near = (np.abs(self._sums - _sums(thumbnail[None])) <= self.max_levels * math.prod(SHAPE[:2])).all(0)
        differences = np.abs(self._values[is_near] - thumbnail.reshape(-1).astype(np.int16))
        return bool((differences <= self.max_levels).all(1).any())


def _sums(thumbnails: Pixels) -> npt.NDArray[np.int32]:
    """Sums of the channels of thumbnails [N, 16, 16, 3], [3, N]."""
    return thumbnails.sum((1, 2), dtype=np.int32).T.copy()
