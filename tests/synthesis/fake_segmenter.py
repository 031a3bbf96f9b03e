"""A segmenter without a network."""

from collections.abc import Sequence

import torch

from emuedit.models.segmenter import Masks


class FakeSegmenter:
    """Fills every box."""

    def segment(self, images: torch.Tensor, boxes_px: Sequence[torch.Tensor]) -> list[Masks]:
        image_masks = []
        for boxes in boxes_px:
            filled = torch.zeros(len(boxes), *images.shape[-2:], dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(filled, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            image_masks.append(Masks(filled, torch.ones(len(boxes))))
        return image_masks
