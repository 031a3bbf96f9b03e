"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of peft on the layers of a network, and back to ordinary layers."""

from collections.abc import Sequence
from typing import Any

import torch

from emuedit.models import model_sources


def inject(model: Any, layers: Sequence[str], **settings: Any) -> None:
    """Add adapters to the linear layers with these names, trainable and in float32. `settings` are those of peft's LoraConfig."""
    peft = model_sources.import_library("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(layers), **settings), model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the adapters
            parameter.data = parameter.data.float()


@torch.no_grad()
def merge(model: Any) -> None:
    """Add all adapters to the weights, in the number format of these, and take them out."""
    layer_kind = model_sources.import_library("peft.tuners.lora.layer").LoraLayer
    for name, layer in list(model.named_modules()):
        if isinstance(layer, layer_kind):
            layer.merge()
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, layer.get_base_layer())
