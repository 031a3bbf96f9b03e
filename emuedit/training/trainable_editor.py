"""What learns: the editor's network and, where asked, the text encoders that read its instructions.

Frozen encoders suit those that read the web. One that read captions alone ("a red circle") does not bind "make the circle red":
with it frozen, edits of one object's colour are hardly learned at all; trained along, they are (docs/log.md). Ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emuedit.editor.unet import EditorNet
from emuedit.models.base_model import Painter, ease_backward
from emuedit.training import loss
from emuedit.training.loss import Batch, Draws, Weights


class Pupil(nn.Module):
    """What is trained: the network, and where `reads` the painter's text encoders. Its weights: `net.`, `text.`."""

    def __init__(self, net: EditorNet, painter: Painter, reads: bool) -> None:
        super().__init__()
        self.net, self.text = net, nn.ModuleList(painter.text_encoders if reads else [])
        self.painter = painter

    def begin(self) -> None:
        """Ready to learn, on the painter's device."""
        device = self.painter.device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # on a CPU the former is slower
        self.to(device).to(memory_format=layout).train().requires_grad_(True)
        ease_backward(self.net.unet, self.text)

    def losses(self, batch: Batch, draws: Draws, weights: Weights) -> Tensor:
        """Loss of each sample, [B]; instructions are read anew while their reader learns."""
        if self.text:
            batch = replace(batch, text=self.painter.read_text(batch.said), null=self.painter.null_text(1))
        v = self.net.table.v[batch.tasks]
        return loss.per_sample(self.net, self.painter.scheduler, batch, draws, v, weights)
