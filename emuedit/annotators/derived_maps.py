"""Maps as images: surface normals from depth, edges, and class colours. Shapes: N images of H x W pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude

from emuedit.annotators.drawing import luma

RELIEF = 1.0
"""Assumed depth of the scene, in units of the image's longer side; relative depth does not provide it. Ours."""
EDGE_SIGMA_PX = 1.0
"""Standard deviation of the Gaussian of the edge filter, for images up to `EDGE_SIDE_PX`. Ours."""
EDGE_SIDE_PX = 512
"""Longer side above which the deviation grows in proportion, since the edges of larger images are wider. Ours."""
EDGE_GAIN = 4.0
"""Darkness of an edge per step in luma: a step of a quarter of the range from black to white is fully black. Ours."""


def normals(depth: np.ndarray) -> np.ndarray:
    """Depth [N, H, W] in [0, 1], nearer is larger -> normals [N, H, W, 3] in [0, 1], encoded as 0.5 n + 0.5.

    n is the unit vector along (-dz/dx, -dz/dy, 1), with x right, y up and z towards the viewer, of the relief z =
    `RELIEF` depth, by central differences, in units of the image's longer side. This follows ControlNet's normals from
    relative depth (Zhang et al. 2023); its Sobel filter and scale are replaced, which is our choice. The depth is
    inverse and has no scale, so these are the normals of a relief and not of the metric scene.
    """
    dz_down, dz_right = np.gradient(depth * RELIEF * max(depth.shape[1:]), axis=(1, 2))
    n = np.stack([-dz_right, dz_down, np.ones_like(depth)], -1)
    unit: np.ndarray = n / np.linalg.norm(n, axis=-1, keepdims=True)
    return unit * 0.5 + 0.5


def edge_strength(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] in [0, 1] -> darkness of each pixel's edge in a sketch, [N, H, W] in [0, 1].

    The gradient of the Gaussian-blurred luma, divided by its peak 1 / (sigma sqrt(2 pi)) at a step from 0
    to 1, is the height of the step. That height times `EDGE_GAIN`, clipped to [0, 1], is the result. The formula is
    ours.
    """
    grey = luma(images.astype(np.float32))
    sigma_px = EDGE_SIGMA_PX * max(1.0, max(images.shape[1:3]) / EDGE_SIDE_PX)
    sigma = (0, sigma_px, sigma_px)  # `axes` alone would still blur across images
    gradient = gaussian_gradient_magnitude(grey, sigma, mode="nearest", axes=(1, 2))
    return np.clip(EDGE_GAIN * sigma_px * np.sqrt(2 * np.pi) * gradient, 0, 1)


def class_colours(labels: np.ndarray) -> np.ndarray:
    """Class indices int [...] below 256 -> uint8 [..., 3], PASCAL VOC's colour map (its `VOClabelcolormap`)."""
    colour, remaining_bits = np.zeros((*labels.shape, 3), np.uint8), labels.copy()
    for bit in range(7, -1, -1):
        for channel in range(3):
            colour[..., channel] |= (((remaining_bits >> channel) & 1) << bit).astype(np.uint8)
        remaining_bits >>= 3
    return colour
