"""TrainableEditor wraps the editor's U-Net and, optionally, the base model's text encoders.

InstructPix2Pix and Emu Edit freeze text encoders that were trained on the web. One that was trained on captions alone ("a red
circle") does not bind "make the circle red": with it frozen, edits of one object's colour are hardly learned (docs/log.md). Ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextToImageModel, use_unfused_attention_on_cpu
from emuedit.training import loss
from emuedit.training.batch import Batch
from emuedit.training.loss import LossWeights, NoiseDraws


class TrainableEditor(nn.Module):
    """The weights that are trained: `net.` and, with `train_text`, the base model's text encoders as `text.`."""

    def __init__(self, net: EditorUNet, base_model: TextToImageModel, train_text: bool) -> None:
        super().__init__()
        self.net, self.text = net, nn.ModuleList(base_model.text_encoders if train_text else [])
        self.base_model = base_model

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.base_model.device

    def prepare(self) -> None:
        """Move to the base model's device and switch to training mode."""
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format  # slower on a CPU
        self.to(self.device).to(memory_format=layout).train().requires_grad_(True)
        use_unfused_attention_on_cpu(self.net.unet, self.text)

    def losses(self, batch: Batch, draws: NoiseDraws, weights: LossWeights) -> Tensor:
        """Loss of each sample, [B]; with trained text encoders the instructions are encoded again in every step."""
        if self.text:
            text = self.base_model.encode_text_with_grad(batch.instructions)
            batch = replace(batch, text=text, null=self.base_model.null_text(1))
        v = self.net.table.v[batch.tasks]
        return loss.loss_per_sample(self.net, self.base_model.scheduler, batch, draws, v, weights)
