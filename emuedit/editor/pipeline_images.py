"""The inputs and outputs of a diffusers pipeline.

Shapes: B images, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from emuedit.data import image_io
from emuedit.editor import changed_area
from emuedit.editor.changed_area import ChangedArea
from emuedit.models import image_tensors

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class EditPipelineOutput(ImagePipelineOutput):  # type: ignore[misc]  # diffusers is Any
    """Edited images, and how much of each was changed."""

    changed: list[ChangedArea]
    """Share and bounding box of the pixels that differ from the input, as 8-bit images; one per result."""


def read_images(image: Any) -> Tensor:
    """float32 [B, 3, H, W] in [-1, 1] of an image, a batch or a list of images, all of one size.

    An image is a PIL image, an array [H, W, 3] of uint8 or of floats in [0, 1], or a tensor [3, H, W] of floats in [0, 1]; a
    batch is an array or a tensor with one more dimension. Raises ValueError for anything else.
    """
    if isinstance(image, list | tuple):
        pictures = [read_images(picture) for picture in image]
        sizes = sorted({tuple(picture.shape[2:]) for picture in pictures})
        if len(sizes) != 1:
            raise ValueError(f"want images of one size, got (H, W) {sizes}; resize them, or call the pipeline for each size")
        return torch.cat(pictures)
    if isinstance(image, Image.Image) and image.mode not in ("I", "F"):  # their value range is unknown
        return image_tensors.from_uint8(image_io.convert_to_rgb(image).pixels)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image_tensors.from_uint8(image)
    values = (
        torch.from_numpy(np.require(image, requirements=["C", "W"])).movedim(-1, -3)
        if isinstance(image, np.ndarray) and image.ndim >= 3
        else image
    )
    if not isinstance(values, Tensor) or values.ndim not in (3, 4) or values.shape[-3] != 3 or not values.is_floating_point():
        got = " ".join(str(getattr(image, name)) for name in ("mode", "dtype", "shape") if hasattr(image, name))
        raise ValueError(
            "want a PIL image, an array [H, W, 3] (uint8, or floats in [0, 1]), a tensor [3, H, W] of floats in [0, 1], a batch "
            f"or a list of them; got {type(image).__name__} {got}".rstrip()
        )
    low, high = (value.item() for value in values.aminmax())
    if not (low >= -image_tensors.SLACK and high <= 1 + image_tensors.SLACK):  # also true for NaN
        raise ValueError(f"want an image with values in [0, 1], got [{low:.4g}, {high:.4g}]; rescale it")
    batch = values if values.ndim == 4 else values[None]
    return batch.float().clamp(0, 1) * 2 - 1


def convert_output(images: Tensor, output_type: str) -> Any:
    """float [B, 3, H, W] in [-1, 1] -> PIL images, an array [B, H, W, 3] or a tensor [B, 3, H, W], both float32 in [0, 1]."""
    if output_type == "pil":
        return image_tensors.to_pil(images)
    values = (images.float() / 2 + 0.5).clamp(0, 1)
    return values.permute(0, 2, 3, 1).contiguous().numpy() if output_type == "np" else values


def measure_changes(before: Tensor, after: Tensor) -> list[ChangedArea]:
    """The changed area of each of B images, float [B, 3, H, W] in [-1, 1] before and after an edit, as 8-bit images."""
    return [changed_area.measure(*pair) for pair in zip(*map(image_tensors.to_uint8, (before, after)), strict=True)]
