"""The samples of a training step.

Shapes: B samples, C latent channels, h and w latent sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.models.text_encoding import Tokens
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

    None: the images were not cropped, and all have the size of their latents."""
    tokens: tuple[Tokens, ...] | None = None
    """Tokens for trained text encoders: the empty text, then the instructions. None before `TrainableEditor.tokenized` and for
    frozen text encoders."""
    token_rows: Tensor | None = None  # of each sample's instruction in `tokens`, int64 [B]

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; in channels-last layout on a GPU."""
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        source, target = (to_device(x.contiguous(memory_format=layout), device) for x in (self.source, self.target))
        text, null = (
            TextCondition(to_device(c.hidden, device), None if c.pooled is None else to_device(c.pooled, device))
            for c in (self.text, self.null)
        )
        sizes, rows = (x if x is None else to_device(x, device) for x in (self.sizes, self.token_rows))
        tokens = None if self.tokens is None else tuple(Tokens(*(to_device(x, device) for x in part)) for part in self.tokens)
        tasks = to_device(self.tasks, device)
        return Batch(source, target, text, null, tasks, self.ids, self.instructions, sizes, tokens, rows)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device; to a CUDA GPU asynchronously from page-locked memory."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.device.type == "cpu" else x.to(device)
