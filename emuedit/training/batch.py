"""The samples of a training step.

Shapes: B samples, C latent channels, h and w latent sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.models.text_to_image import TextCondition


@dataclass(frozen=True)
class Batch:
    """The samples of a step."""

    source: Tensor  # E(c_I), [B, C, h, w]
    target: Tensor  # E(x), [B, C, h, w]
    text: TextCondition  # of the instructions
    null: TextCondition  # of the empty instruction, one row
    tasks: Tensor  # rows of the task embedding, int64 [B]
    ids: tuple[str, ...]  # of the pairs
    instructions: tuple[str, ...]
    sizes: Tensor | None = None
    """SDXL's size conditions in px, [B, 6]: original height and width, top and left of the crop, target height and width.

    None: the pictures were not cropped, and all have the size of their latents."""

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; on a GPU in channels-last layout."""
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        source, target = (x.to(device, memory_format=layout) for x in (self.source, self.target))
        text, null = (
            TextCondition(c.hidden.to(device), None if c.pooled is None else c.pooled.to(device)) for c in (self.text, self.null)
        )
        sizes = None if self.sizes is None else self.sizes.to(device)
        return Batch(source, target, text, null, self.tasks.to(device), self.ids, self.instructions, sizes)
