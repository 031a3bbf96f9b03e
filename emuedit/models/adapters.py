"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of peft: inject them into a network, and merge them."""

from collections.abc import Sequence
from typing import Any

import torch

from emuedit.models import model_sources

UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Name suffixes of the linear layers of every attention in a diffusers U-Net, as in diffusers' LoRA scripts."""


def inject(model: Any, layers: Sequence[str], **settings: Any) -> None:
    """Add adapters to the linear layers with these names, trainable and in float32. `settings`: of peft's LoraConfig."""
    peft = model_sources.import_library("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(layers), **settings), model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the adapters
            parameter.data = parameter.data.float()


@torch.no_grad()
def merge(model: Any) -> None:
    """Merge all adapters into the weights, in the weights' number format."""
    layer_kind = model_sources.import_library("peft.tuners.lora.layer").LoraLayer
    for name, layer in list(model.named_modules()):
        if isinstance(layer, layer_kind):
            layer.merge()
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, layer.get_base_layer())
