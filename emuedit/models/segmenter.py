"""The segmenter: segment_anything's Sam, from Meta's .pth checkpoints or from a folder of config.json + safetensors.

Shapes: B images, H and W pixels, K boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emuedit.models import image_tensors, model_sources, sam_builder


@dataclass(frozen=True)
class Masks:
    """Masks of one image, on the CPU."""

    masks: torch.Tensor  # bool [K, H, W]
    iou: torch.Tensor  # float32 [K], the network's estimate of each mask's quality


class Segmenter:
    """Segments the objects in boxes with the method `segment`. `model` is segment_anything's Sam."""

    def __init__(self, model: Any, config: sam_builder.SamConfig, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        resize = model_sources.import_library("segment_anything.utils.transforms").ResizeLongestSide
        self.resize = resize(config.image_size)

    def segment(self, images: torch.Tensor, boxes_px: Sequence[torch.Tensor]) -> list[Masks]:
        """Images [B, 3, H, W] in [-1, 1] and B tensors of boxes [K, 4] (x0 y0 x1 y1, px) -> B Masks, one mask per box.

        Raises ValueError for a wrong number of tensors or shape of boxes.
        """
        if len(boxes_px) != len(images):
            raise ValueError(f"want one tensor of boxes per image, got {len(boxes_px)} for {len(images)} images")
        for boxes in boxes_px:
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"boxes must be [K, 4] x0 y0 x1 y1 in pixels, got {tuple(boxes.shape)}")
        height, width = images.shape[-2:]
        results = [Masks(torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0)) for _ in boxes_px]
        with_boxes = [i for i, boxes in enumerate(boxes_px) if len(boxes)]
        if with_boxes:
            arrays = image_tensors.to_uint8(images[with_boxes])  # uint8 [b, H, W, 3]
            device = self.model.device
            inputs = [
                {
                    "image": torch.from_numpy(self._resize(array)).permute(2, 0, 1).to(device, torch.float32),
                    "original_size": (height, width),
                    "boxes": self.resize.apply_boxes_torch(boxes_px[i].float(), (height, width)).to(device),
                }
                for array, i in zip(arrays, with_boxes, strict=True)
            ]
            with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.model(inputs, multimask_output=False)
            for i, output in zip(with_boxes, outputs, strict=True):
                results[i] = Masks(output["masks"][:, 0].cpu(), output["iou_predictions"][:, 0].float().cpu())
        return results

    def save(self, folder: str | Path) -> None:
        """Write a folder for `load`."""
        sam_builder.save(self.model, self.config, folder)

    def _resize(self, array: Any) -> Any:
        """Resize an image uint8 [H, W, 3] so that its longest side is the network's size."""
        fits = max(array.shape[:2]) == self.config.image_size
        return array.copy() if fits else self.resize.apply_image(array)


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Segmenter:
    """Load a segmenter from a folder written by `save`, or from a released checkpoint file.

    A released file (.pth or .safetensors; vit_b, vit_l or vit_h) has no config; the encoder width determines the model. Weights
    stay float32, because Sam's prompt encoder computes in it; another dtype runs the network under autocast.
    """
    model, config = sam_builder.load(Path(name_or_path))
    return Segmenter(model.to(device).requires_grad_(False).eval(), config, dtype)
