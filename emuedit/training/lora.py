"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685; DoRA, Liu et al., arXiv 2402.09353) on the attention of the U-Net.

What the base model does not have is trained in full beside them: the first and last convolution, the class projection, the task
embedding. After training the adapters are added to the weights, so the saved editor is an ordinary one.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from emuedit import config
from emuedit.models import model_sources

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of every attention, as diffusers' LoRA scripts choose them."""
NEW_LAYERS = ("conv_in", "conv_out", "class_embedding")
"""Layers of the U-Net that an editor adds or widens."""


class LoraSettings(config.Params):
    """Settings of the adapters."""

    rank: int = Field(ge=1)
    """Rank r of the product B A that is added to a weight."""
    alpha: float | None = Field(None, gt=0)
    """The product is scaled by alpha / r; None: by one."""
    dora: bool = False
    """Train the magnitude of every output separately (DoRA)."""


def add_adapters(unet: Any, settings: LoraSettings, frozen_dtype: torch.dtype = torch.float32) -> None:
    """Freeze the U-Net in `frozen_dtype` and add adapters, in float32; they change nothing before they are trained."""
    unet.requires_grad_(False)
    nn.Module.to(unet, frozen_dtype)
    peft = model_sources.import_library("peft")
    adapters = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        target_modules=list(ADAPTED),
        use_dora=settings.dora,
        init_lora_weights="gaussian",
    )
    peft.inject_adapter_in_model(adapters, unet)
    for parameter in unet.parameters():
        if parameter.requires_grad:  # the adapters
            parameter.data = parameter.data.float()
    for name in NEW_LAYERS:
        unet.get_submodule(name).float().requires_grad_(True)


@torch.no_grad()
def merge_adapters(unet: Any) -> None:
    """Add the adapters to the weights, in float32, and take them out: the U-Net has its own layers again."""
    layer_kind = model_sources.import_library("peft.tuners.lora.layer").LoraLayer
    nn.Module.to(unet, torch.float32)
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, layer_kind):
            layer.merge()
            parent_name, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent_name), child, layer.get_base_layer())
