"""Maps of pictures as pictures: normals of a depth map, edges, the colours of classes. Shapes: N pictures of H x W pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude

from emuedit.annotators.drawing import luma

RELIEF = 1.0
"""How deep a scene is, in longer sides of its picture; relative depth does not say (ours)."""
EDGE_SIGMA_PX = 1.0
"""Spread of the Gaussian under the edges (ours)."""
EDGE_GAIN = 4.0
"""A step of a quarter of the range from black to white is drawn all black (ours)."""


def normals(depth: np.ndarray) -> np.ndarray:
    """Depth [N, H, W] in [0, 1], nearer is larger -> [N, H, W, 3]: normals (x right, y up, z to the viewer), 0.5 n + 0.5.

    n ~ (-dz/dx, -dz/dy, 1) of the relief z = `RELIEF` depth, by central differences, the longer side of the picture as unit:
    ControlNet's recipe for normals from relative depth (Zhang et al. 2023), with its Sobel filter and scale replaced (ours).
    The depth is inverse and without scale, so these are normals of a relief, not of the metric scene.
    """
    down, along = np.gradient(depth * RELIEF * max(depth.shape[1:]), axis=(1, 2))
    n = np.stack([-along, down, np.ones_like(depth)], -1)
    unit: np.ndarray = n / np.linalg.norm(n, axis=-1, keepdims=True)
    return unit * 0.5 + 0.5


def ink(pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, H, W, 3] in [0, 1] -> how dark a line each pixel is in a sketch, [N, H, W] in [0, 1].

    scipy's gradient of the luma under a Gaussian. Divided by the peak it has at a step from 0 to 1, 1 / (sigma sqrt(2 pi)), it
    is the height of the step; that times `EDGE_GAIN` is the ink.
    """
    grey = luma(pictures.astype(np.float32))
    sigma = (0, EDGE_SIGMA_PX, EDGE_SIGMA_PX)  # `axes` alone would still blur one picture into the next
    slope = gaussian_gradient_magnitude(grey, sigma, mode="nearest", axes=(1, 2))
    return np.clip(EDGE_GAIN * EDGE_SIGMA_PX * np.sqrt(2 * np.pi) * slope, 0, 1)


def class_colours(labels: np.ndarray) -> np.ndarray:
    """Class numbers int [...] below 256 -> uint8 [..., 3], the colour map of PASCAL VOC (its devkit's `VOClabelcolormap`)."""
    colour, rest = np.zeros((*labels.shape, 3), np.uint8), labels.copy()
    for bit in range(7, -1, -1):
        for channel in range(3):
            colour[..., channel] |= (((rest >> channel) & 1) << bit).astype(np.uint8)
        rest >>= 3
    return colour
