"""The door between pictures inside (float32 [B, 3, H, W] in [-1, 1]) and outside (uint8 [B, H, W, 3], PIL).

B: pictures, H and W: pixels. uint8 -> float -> uint8 gives every byte back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL import Image

SLACK = 1e-3  # how far beyond [-1, 1] rounding may carry a value; ours


def check(images: torch.Tensor) -> torch.Tensor:
    """The same pictures, if they are what the adapters take; else an error that says what they are."""
    want = "images must be float [B, 3, H, W] in [-1, 1]"
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"{want}, got {tuple(images.shape)} {images.dtype}; call pixels.from_uint8 first")
    if images.numel():
        low, high = images.aminmax()
        if not (low >= -1 - SLACK and high <= 1 + SLACK):  # written so that NaN fails too
            raise ValueError(f"{want}, got values in [{low:.4g}, {high:.4g}]; rescale or clamp them first")
    return images


def from_uint8(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, H, W, 3] or [H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[-1] != 3:
        raise ValueError(
            f"pictures must be uint8 [B, H, W, 3] or [H, W, 3], got {pictures.shape} {pictures.dtype}; convert to RGB bytes first"
        )
    batch = pictures if pictures.ndim == 4 else pictures[None]
    bytes_ = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2)  # [B, 3, H, W]
    return bytes_.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """float [B, 3, H, W] in [-1, 1] -> uint8 tensor [B, 3, H, W] on the CPU, rounded to the nearest byte."""
    levels = check(images).detach().to("cpu", torch.float32).add(1.0).mul(127.5)
    return levels.round().clamp(0, 255).to(torch.uint8)


def to_uint8(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    pictures: npt.NDArray[np.uint8] = to_bytes(images).permute(0, 2, 3, 1).contiguous().numpy()
    return pictures


def from_pil(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """PIL pictures of one size -> float32 [B, 3, H, W] in [-1, 1]; any mode is converted to RGB."""
    if not pictures:
        raise ValueError("from_pil wants at least one picture, got none")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"pictures of one batch must share one size, got {sorted(sizes)}; batch them by size")
    return from_uint8(np.stack([np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in pictures]))


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """float [B, 3, H, W] in [-1, 1] -> B RGB pictures."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in to_uint8(images)]
