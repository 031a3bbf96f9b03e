"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) for the attention of a T5 classifier with frozen weights.

The new head is fully trained, in float32. After training, the adapters are merged into the weights, so the saved classifier is a
standard one, in the number format of its T5.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from emuedit import config
from emuedit.models import adapters, model_sources

ADAPTED = ("q", "v")
"""The linear layers of every attention that get an adapter, as in the paper."""
_HEAD = "classification_head"


class AdapterSettings(config.Params):
    """Settings of the adapters."""

    rank: int = Field(16, ge=1)
    """Rank r of the product B A that is added to a weight."""
    alpha: float = Field(32.0, gt=0)
    """The product is scaled by alpha / r."""


def add_adapters(model: Any, settings: AdapterSettings) -> None:
    """Freeze a T5 classifier and add adapters; adapters and head are float32; untrained adapters have no effect."""
    model.requires_grad_(False)
    adapters.inject(model, ADAPTED, r=settings.rank, lora_alpha=settings.alpha)
    head = model.get_submodule(_HEAD)
    head.float().requires_grad_(True)
    head.register_forward_pre_hook(_to_float32)


def merge_adapters(model: Any) -> None:
    """Merge the adapters into the weights: the classifier has standard layers and one number format again."""
    adapters.merge(model)
    head = model.get_submodule(_HEAD)
    head._forward_pre_hooks.clear()
    nn.Module.to(head, model.get_input_embeddings().weight.dtype)


def count_parameters(name_or_path: str) -> int:
    """Parameter count of a T5 from its config; weights are not read."""
    transformers = model_sources.import_library("transformers")
    name, revision = model_sources.split_revision(name_or_path)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(name, revision=revision))
    return sum(parameter.numel() for parameter in model.parameters())


def _to_float32(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)
