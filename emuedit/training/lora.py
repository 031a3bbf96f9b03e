"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685; DoRA, Liu et al., arXiv 2402.09353) on the attention of the U-Net.

Layers that the base model lacks are fully trained: the first and last convolution, the class projection, the task embedding.
After training the adapters are merged into the weights, so the saved editor is a standard one.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from emuedit import config
from emuedit.models import adapters

LAYERS_WITH_NEW_INPUTS = ("conv_in", "class_embedding")
"""Layers of the U-Net that an editor adds, or widens at the input."""
NEW_LAYERS = (*LAYERS_WITH_NEW_INPUTS, "conv_out")
"""All layers of the U-Net that an editor adds or widens."""


class LoraSettings(config.Params):
    """Settings of the adapters."""

    rank: int = Field(ge=1)
    """Rank r of the product B A that is added to a weight."""
    alpha: float | None = Field(None, gt=0)
    """The product is scaled by alpha / r; None: by 1."""
    dora: bool = False
    """Train the magnitude of every output separately (DoRA)."""


def add_adapters(unet: Any, settings: LoraSettings, frozen_dtype: torch.dtype = torch.float32) -> None:
    """Freeze the U-Net in `frozen_dtype` and add adapters, in float32; untrained adapters have no effect.

    Their weights are drawn from PyTorch's global generator on the CPU.
    """
    unet.requires_grad_(False)
    nn.Module.to(unet, frozen_dtype)
    alpha = settings.alpha or settings.rank
    options = {"r": settings.rank, "lora_alpha": alpha, "use_dora": settings.dora, "init_lora_weights": "gaussian"}
    adapters.inject(unet, adapters.UNET_ATTENTION, **options)
    for name in NEW_LAYERS:
        unet.get_submodule(name).float().requires_grad_(True)


def merge_adapters(unet: Any) -> None:
    """Merge the adapters into the weights, in float32: the U-Net has standard layers again."""
    nn.Module.to(unet, torch.float32)
    adapters.merge(unet)
