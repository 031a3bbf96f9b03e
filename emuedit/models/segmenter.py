"""The segmenter: segment_anything's Sam, from Meta's .pth checkpoints or from a folder of config.json + safetensors.

Shapes: B pictures, H and W pixels, K boxes of one picture.
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
    """Masks of one picture, on the CPU."""

    masks: torch.Tensor  # bool [K, H, W]
    iou: torch.Tensor  # float32 [K], the network's own guess of each mask's quality


class Segmenter:
    """`segment` is the one call. `model` is segment_anything's own Sam."""

    def __init__(self, model: Any, config: sam_builder.SamConfig, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        resize = model_sources.library("segment_anything.utils.transforms").ResizeLongestSide
        self.resize = resize(config.image_size)

    def segment(self, images: torch.Tensor, boxes_px: Sequence[torch.Tensor]) -> list[Masks]:
        """Images [B, 3, H, W] in [-1, 1] and B boxes [K, 4] (x0 y0 x1 y1, px) -> B Masks, one mask a box."""
        if len(boxes_px) != len(images):
            raise ValueError(f"segment wants one tensor of boxes a picture, got {len(boxes_px)} for {len(images)}")
        for boxes in boxes_px:
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"boxes must be [K, 4] x0 y0 x1 y1 in pixels, got {tuple(boxes.shape)}")
        height, width = images.shape[-2:]
        results = [Masks(torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0)) for _ in boxes_px]
        asking = [i for i, boxes in enumerate(boxes_px) if len(boxes)]
        if asking:
            pictures = image_tensors.to_uint8(images[asking])  # uint8 [b, H, W, 3]
            device = self.model.device
            records = [
                {
                    "image": torch.from_numpy(self._fitted(picture)).permute(2, 0, 1).to(device, torch.float32),
                    "original_size": (height, width),
                    "boxes": self.resize.apply_boxes_torch(boxes_px[i].float(), (height, width)).to(device),
                }
                for picture, i in zip(pictures, asking, strict=True)
            ]
            with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                found = self.model(records, multimask_output=False)
            for i, one in zip(asking, found, strict=True):
                results[i] = Masks(one["masks"][:, 0].cpu(), one["iou_predictions"][:, 0].float().cpu())
        return results

    def save(self, folder: str | Path) -> None:
        """Write the folder that `load` reads."""
        sam_builder.save(self.model, self.config, folder)

    def _fitted(self, picture: Any) -> Any:
        fits = max(picture.shape[:2]) == self.config.image_size
        return picture.copy() if fits else self.resize.apply_image(picture)


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None) -> Segmenter:
    """A segmenter from a folder of ours, or from a released checkpoint file (.pth or .safetensors; vit_b, vit_l, vit_h).

    A released file carries no config: which of the three it is, is read off the width of its weights. Weights stay in
    float32 (Sam's prompt encoder computes in it); another dtype runs the network under autocast.
    """
    if revision is not None:
        raise ValueError(f"a Sam is a local folder or file and has no revision, got {revision!r}; leave it out")
    model, config = sam_builder.load(Path(name_or_path))
    return Segmenter(model.to(device).requires_grad_(False).eval(), config, dtype)
