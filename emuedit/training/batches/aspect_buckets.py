"""Aspect buckets: a few sizes of similar area, to batch images of any shape with little cropping.

Sizes are (height, width) in px. SDXL trains this way (arXiv 2307.01952, section 2.3 and appendix I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emuedit.models.text_to_image import TextToImageModel, grid_of

Size = tuple[int, int]
"""(height, width) in px."""


class AspectBucketError(ValueError):
    """Raised for an impossible resolution or aspect ratio."""


@dataclass(frozen=True)
class Placement:
    """How an image is fitted to its bucket: scaled, then cropped."""

    original: Size
    resized: Size
    top: int  # of the crop, in px of the resized image
    left: int
    size: Size  # of the bucket

    @property
    def mirrored_left(self) -> int:
        """Left of the crop in the mirrored image."""
        return self.resized[1] - self.size[1] - self.left

    @property
    def is_enlarged(self) -> bool:
        """Whether the image is smaller than its bucket."""
        return math.prod(self.resized) > math.prod(self.original)

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of the original size -> uint8 [H, W, 3] of the bucket's size; unchanged if it already has it."""
        if self.resized != self.original:
            height, width = self.resized
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
        return pixels[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]


@dataclass(frozen=True)
class AspectBuckets:
    """The sizes to which images are resized."""

    sizes: tuple[Size, ...]

    @classmethod
    def around(cls, resolution: int, max_aspect_ratio: float, grid_px: int) -> AspectBuckets:
        """For each longer side that is a multiple of grid_px, the largest shorter one with an area of at most resolution^2.

        Each size exists in portrait and landscape, ordered by height. Sizes whose aspect ratio (longer by shorter side) exceeds
        `max_aspect_ratio` are omitted. Raises AspectBucketError for a resolution that is not a multiple of grid_px
        and for a ratio below 1.
        """
        if resolution <= 0 or resolution % grid_px:
            near = max(1, round(resolution / grid_px)) * grid_px
            raise AspectBucketError(
                f"want a resolution that is a multiple of {grid_px} px, the grid of VAE and U-Net, got {resolution}; use {near}"
            )
        if max_aspect_ratio < 1:
            raise AspectBucketError(f"want max_aspect_ratio >= 1 (longer by shorter side), got {max_aspect_ratio}")
        longest = min(math.floor(resolution * math.sqrt(max_aspect_ratio)), resolution**2 // grid_px) // grid_px * grid_px
        tall = {(side, resolution**2 // side // grid_px * grid_px) for side in range(resolution, longest + 1, grid_px)}
        tall = {(height, width) for height, width in tall if width and height <= max_aspect_ratio * width}
        return cls(tuple(sorted(tall | {(width, height) for height, width in tall})))

    @classmethod
    def for_base_model(
        cls, base_model: TextToImageModel, resolution: int | None = None, max_aspect_ratio: float = 2.0
    ) -> AspectBuckets:
        """Buckets on the grid of a base model; `resolution` None is the size that its U-Net was trained at, in px."""
        grid_px = grid_of(base_model)
        own_resolution = math.isqrt(math.prod(base_model.size)) // grid_px * grid_px
        return cls.around(own_resolution if resolution is None else resolution, max_aspect_ratio, grid_px)

    @classmethod
    def unchanged(cls) -> AspectBuckets:
        """Every image keeps its size; each size is a bucket."""
        return cls(())

    def nearest(self, size: Size) -> Size:
        """The bucket with the aspect ratio nearest to the image's: least |log(ratio / ratio of the bucket)|."""
        if not self.sizes:
            return size
        height, width = size

        def distance(bucket: Size) -> Fraction:  # exp of the difference of logarithms, exact
            ratio = Fraction(height * bucket[1], width * bucket[0])
            return max(ratio, 1 / ratio)

        return min(self.sizes, key=distance)

    def place(self, size: Size) -> Placement:
        """Scale an image of this size so that it covers its bucket, keeping its aspect ratio, and crop the centre."""
        height, width = size
        bucket = self.nearest(size)
        scale = max(Fraction(bucket[0], height), Fraction(bucket[1], width))
        resized = (max(bucket[0], round(height * scale)), max(bucket[1], round(width * scale)))
        return Placement(size, resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2, bucket)
