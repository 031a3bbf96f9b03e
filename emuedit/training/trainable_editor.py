"""TrainableEditor: the trained parts (U-Net, task embedding, optionally the text encoders) and their forward pass.

InstructPix2Pix and Emu Edit freeze text encoders pretrained on web data. A frozen text encoder that was trained only on captions
("a red circle") does not relate "make the circle red" to them: colour edits are hardly learned (docs/log.md). Ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.sampling import EditSampler
from emuedit.editor.unet import EditorUNet
from emuedit.models import objective
from emuedit.models.attention_processor import use_unfused_attention_on_cpu
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import seed_for
from emuedit.training import lora, loss
from emuedit.training.batches.batch import Batch
from emuedit.training.loss import LossParts, LossWeights, NoiseDraws
from emuedit.training.optim.sharded_tensors import gathered_root
from emuedit.training.train_settings import TrainSettings


class TrainableEditor(nn.Module):
    """The trained weights: `net.` and, if their learning rate is above 0, the base model's text encoders as `text.`.

    The base model's U-Net is replaced by the extended one, to have only one in memory. Its scheduler is set to the training
    objective; the editor samples with it too.
    """

    def __init__(self, net: EditorUNet, parts: TextToImageModel, settings: TrainSettings) -> None:
        super().__init__()
        self.net, self.text = net, nn.ModuleList(parts.text_encoders if settings.lr_mult_text else [])
        self.parts, self.settings = parts, settings
        parts.unet = parts.pipeline.unet = net.unet
        parts.scheduler = parts.pipeline.scheduler = objective.configure_scheduler(
            parts.scheduler, settings.objective, settings.zero_terminal_snr
        )
        if objective.ends_in_noise(parts.scheduler) and settings.objective != "flow":  # its own rules are those of the settings
            settings.check_pure_noise_step("the noise schedule of the start, which ends in pure noise")

    @property
    def device(self) -> torch.device:
        """Device of the training."""
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of computations on a CPU, and of sampling."""
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        return dtype

    def prepare(self, device: torch.device, is_sharded: bool = False) -> None:
        """Move the trained parts to a device and prepare them: float32 weights, adapters, checkpointing, memory layout.

        is_sharded: whether FSDP will shard the weights, which requires the default memory layout.
        """
        settings, unet = self.settings, self.net.unet
        self.float().train().requires_grad_(True)
        if settings.lora is not None:
            half = settings.dtype != "float32" and device.type != "cpu"
            with torch.random.fork_rng([]):
                torch.manual_seed(seed_for("editor", "lora", settings.seed))
                lora.add_adapters(unet, settings.lora, self.dtype if half else torch.float32)
        self.to(device)  # not before: frozen weights in half precision need never fit the device in float32
        if device.type == "cuda" and not is_sharded:
            self.to(memory_format=torch.channels_last)  # slower on a CPU
        objective.move_noise_schedule(self.parts.scheduler, device)
        use_unfused_attention_on_cpu(unet, self.text, self.dtype)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            for encoder in self.parts.text_encoders if self.text else ():
                encoder.activation_checkpointing_enable()
        if settings.compile:
            unet.compile()

    def finish(self) -> None:
        """Merge adapters and freeze: the network is a standard editor's."""
        unet = self.net.unet
        if self.settings.gradient_checkpointing:
            unet.disable_gradient_checkpointing()
        if self.settings.lora is not None:
            lora.merge_adapters(unet)
        self.eval().requires_grad_(False)

    @property
    def has_unused_weights(self) -> bool:
        """Whether trained weights never get a gradient: those of the last layers of SDXL's two text encoders."""
        return len(self.text) > 1

    @contextmanager
    def sampling(self) -> Iterator[EditSampler]:
        """Context manager with a sampler of the current weights; the VAE and frozen text encoders are moved to its device.

        With FSDP all processes must sample the same.
        """
        pipeline, device = self.parts.pipeline, self.device
        moved_parts = [part for part in (pipeline.vae, *self.parts.text_encoders) if part.device != device]
        for part in moved_parts:
            part.to(device)
        self.eval()
        try:
            with gathered_root(self):
                sampler = EditSampler(self.net, FrozenParts(pipeline), "", self.dtype)
                # of this training: its start, whose pipeline this is, may have another one
                sampler.resolution_px = self.settings.resolution or round(math.sqrt(math.prod(self.parts.size)))
                yield sampler
        finally:
            self.train()
            for part in moved_parts:
                part.to("cpu")

    def tokenized(self, batch: Batch, fixed_shape: bool = False) -> Batch:
        """Add the instructions' tokens to the batch if text encoders are trained.

        fixed_shape: always B + 1 texts, even if instructions are equal.
        """
        if not self.text or batch.tokens is not None:
            return batch
        texts = ["", *(batch.instructions if fixed_shape else dict.fromkeys(batch.instructions))]
        row_of = {text: row for row, text in enumerate(texts)} | {"": 0}
        rows = torch.tensor([row_of[instruction] for instruction in batch.instructions])
        tokens = self.parts.tokenize(texts)
        device = batch.target.device
        return replace(batch, tokens=tuple(ids.to(device) for ids in tokens), token_rows=rows.to(device))

    def forward(self, batch: Batch, draws: NoiseDraws, weights: LossWeights, weight_timesteps: bool = True) -> LossParts:
        """Parts of the loss of each sample; trained text encoders encode the instructions in every step.

        weight_timesteps: by `min_snr_gamma`, if that is set.
        """
        batch = self.tokenized(batch)
        if batch.tokens is not None and batch.token_rows is not None:
            text = self.parts.encode_tokens(batch.tokens)
            batch = replace(batch, text=text.take(batch.token_rows), null=self.parts.as_null(text.take(slice(1))))
        v = self.net.table.v[batch.tasks]
        gamma = self.settings.min_snr_gamma if weight_timesteps else None
        return loss.loss_parts(self.net, self.parts.scheduler, batch, draws, v, weights, min_snr_gamma=gamma)
