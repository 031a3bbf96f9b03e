"""Conversions between image tensors (float32 [B, 3, H, W] in [-1, 1]) and uint8 [B, H, W, 3] or PIL images.

B: images, H and W: pixels. The round trip uint8 -> float -> uint8 is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL import Image

SLACK = 1e-3
"""Tolerance for values beyond [-1, 1] by rounding. Ours."""


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Return the images unchanged; raise ValueError if they are not float [B, 3, H, W] in [-1, 1]."""
    want = "images must be float [B, 3, H, W] in [-1, 1]"
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"{want}, got {tuple(images.shape)} {images.dtype}; call image_tensors.from_uint8 first")
    if images.numel():
        low, high = images.aminmax()
        if not (low >= -1 - SLACK and high <= 1 + SLACK):  # also true for NaN
            raise ValueError(f"{want}, got values in [{low:.4g}, {high:.4g}]; rescale or clamp them first")
    return images


def from_uint8(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, H, W, 3] or [H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]. Raises ValueError for other arrays."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [B, H, W, 3] or [H, W, 3], got {images.shape} {images.dtype}; convert to RGB bytes first"
        )
    batch = images if images.ndim == 4 else images[None]
    image_bytes = torch.from_numpy(np.require(batch, requirements=["C", "W"])).permute(0, 3, 1, 2)  # [B, 3, H, W]
    return image_bytes.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """float [B, 3, H, W] in [-1, 1] -> uint8 tensor [B, 3, H, W] on the CPU, rounded to the nearest byte."""
    levels = check_images(images).detach().to("cpu", torch.float32).add(1.0).mul(127.5)
    return levels.round().clamp(0, 255).to(torch.uint8)


def to_uint8(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    array: npt.NDArray[np.uint8] = to_bytes(images).permute(0, 2, 3, 1).contiguous().numpy()
    return array


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """float [B, 3, H, W] in [-1, 1] -> B RGB images."""
    from PIL import Image

    return [Image.fromarray(array) for array in to_uint8(images)]
