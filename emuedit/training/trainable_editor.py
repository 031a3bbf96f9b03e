"""What learns: the editor's network and, where asked, the text encoders that read its instructions.

Frozen encoders suit those that read the web. One that read captions alone ("a red circle") does not bind "make the circle red":
with it frozen, edits of one object's colour are hardly learned at all; trained along, they are (docs/log.md). Ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextToImageModel, use_unfused_attention_on_cpu
from emuedit.training import loss
from emuedit.training.loss import Batch, Draws, Weights


class TrainableEditor(nn.Module):
    """What is trained: the network, and where `reads` the base_model's text encoders. Its weights: `net.`, `text.`."""

    def __init__(self, net: EditorUNet, base_model: TextToImageModel, reads: bool) -> None:
        super().__init__()
        self.net, self.text = net, nn.ModuleList(base_model.text_encoders if reads else [])
        self.base_model = base_model

    def begin(self) -> None:
        """Ready to learn, on the base_model's device."""
        device = self.base_model.device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # on a CPU the former is slower
        self.to(device).to(memory_format=layout).train().requires_grad_(True)
        use_unfused_attention_on_cpu(self.net.unet, self.text)

    def losses(self, batch: Batch, draws: Draws, weights: Weights) -> Tensor:
        """Loss of each sample, [B]; instructions are read anew while their reader learns."""
        if self.text:
            batch = replace(batch, text=self.base_model.read_text(batch.said), null=self.base_model.null_text(1))
        v = self.net.table.v[batch.tasks]
        return loss.per_sample(self.net, self.base_model.scheduler, batch, draws, v, weights)
