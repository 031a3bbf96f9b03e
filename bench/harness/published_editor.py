"""diffusers' published pipeline for editing by instruction, with the network of one of our editors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models.model_sources import import_library
from emuedit.models.text_to_image import TextCondition


class InstructPix2PixUNet(nn.Module):
    """An editor's network with the call signature of InstructPix2Pix's U-Net: fixed task, no change mask.

    InstructPix2Pix does not scale the latents of the image, but an editor does; they are scaled here.
    """

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.net, self.config = sampler.net, sampler.net.unet.config
        self.scaling_factor = sampler.parts.vae.config.scaling_factor
        self.v: Tensor = torch.zeros(1, sampler.net.table.d_v)  # [B, D_v] of the images of a call

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.net.unet.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.net.unet.device
        return device

    def forward(self, sample: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """sample [3 B, 2 C, h, w] -> the prediction [3 B, C, h, w]."""
        z_t, picture = sample.chunk(2, 1)
        v = self.v.repeat(len(sample) // len(self.v), 1)
        return (self.net(z_t, t, picture * self.scaling_factor, TextCondition(encoder_hidden_states), v).e,)


def build_pipeline(sampler: EditSampler) -> Any:
    """`StableDiffusionInstructPix2PixPipeline` with the parts of an editor."""
    diffusers = import_library("diffusers")
    parts = {name: getattr(sampler.parts.pipeline, name) for name in ("vae", "text_encoder", "tokenizer")}
    pipeline = diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts, unet=InstructPix2PixUNet(sampler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        scheduler=type(sampler.parts.scheduler).from_config(sampler.parts.scheduler.config),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def edit(
    pipeline: Any, sampler: EditSampler, images: Tensor, texts: list[str], task: str, settings: EditSettings, seeds: list[int]
) -> Tensor:
    """Edit images [B, 3, H, W] in [-1, 1] with the published pipeline and noise of these seeds; same range and shape."""
    pipeline.unet.v = sampler.net.table.rows([task] * len(texts))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    edited: Tensor = pipeline(
        texts,
        image=images / 2 + 0.5,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        image_guidance_scale=settings.image_guidance_scale,
        latents=sampler.parts.initial_noise(generators, (images.shape[-2], images.shape[-1])),
        output_type="pt",
    ).images
    return edited.cpu() * 2 - 1
