"""The adapter of a task: low-rank updates of the U-Net's layers, active only for edits of that task (ours).

Emu Edit (arXiv 2311.10089) learns a new task as one embedding v. If that is not enough, an adapter adds B A x to the output W x
of a layer (LoRA, Hu et al., arXiv 2106.09685). W is not modified: without the adapter, the editor's results are bit-identical.
Shapes: r the rank; a linear layer has A [r, in] and B [out, r], a convolution A [r, in, k, k] and
B [out, r, 1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emuedit.data.name_list import first_names
from emuedit.models.adapters import UNET_ATTENTION

AdaptedLayers = Literal["attention", "all"]
"""`attention` selects `adapters.UNET_ATTENTION`; `all` selects every linear layer and convolution."""
_A, _B = ".a", ".b"


class TaskAdapter:
    """Layer name -> low-rank update. `parameters` are the tensors to train."""

    def __init__(self, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.layers = dict(layers)

    @classmethod
    def untrained(cls, unet: Any, rank: int, layers: AdaptedLayers, generator: torch.Generator) -> TaskAdapter:
        """An adapter without effect: A is normal with variance 1 / fan-in, B is zero; float32, on the U-Net's device."""
        pairs = {}
        for name, layer in unet.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and (layers == "all" or name.endswith(UNET_ATTENTION)):
                shape = (rank, *layer.weight.shape[1:])
                a = torch.randn(shape, generator=generator) / layer.weight[0].numel() ** 0.5
                b = torch.zeros(len(layer.weight), rank, *[1] * (len(shape) - 2))
                pairs[name] = (a.to(unet.device), b.to(unet.device))
        return cls(pairs)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TaskAdapter:
        """An adapter from its saved tensors (`tensors`). Raises ValueError if A or B is missing."""
        names = {name.removesuffix(_A).removesuffix(_B) for name in tensors}
        missing = sorted(f"{name}{half}" for name in names for half in (_A, _B) if f"{name}{half}" not in tensors)
        if missing:
            raise ValueError(f"want A and B for each layer of the adapter, got none at {first_names(missing)}")
        return cls({name: (tensors[f"{name}{_A}"], tensors[f"{name}{_B}"]) for name in sorted(names)})

    @property
    def rank(self) -> int:
        """r."""
        return len(next(iter(self.layers.values()))[0])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, to save."""
        halves = ((f"{name}{half}", x) for name, pair in self.layers.items() for half, x in zip((_A, _B), pair, strict=True))
        return dict(halves)

    def parameters(self) -> list[Tensor]:
        """The tensors A, B, A, B, ..., to be trained."""
        return [x for pair in self.layers.values() for x in pair]

    def copy(self) -> TaskAdapter:
        """A detached copy of the adapter."""
        return TaskAdapter({name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in self.layers.items()})

    def to(self, device: torch.device) -> TaskAdapter:
        """The adapter on a device."""
        return TaskAdapter({name: (a.to(device), b.to(device)) for name, (a, b) in self.layers.items()})

    @contextmanager
    def applied(self, unet: Any) -> Iterator[None]:
        """Context manager that adds the updates to the layers' outputs. Raises ValueError if the U-Net lacks a layer."""
        hooks = []
        try:
            for name, (a, b) in self.layers.items():
                try:
                    layer = unet.get_submodule(name)
                except AttributeError as error:
                    raise ValueError(f"want a U-Net with the layer {name}, got none; the adapter is of another editor") from error
                hooks.append(layer.register_forward_hook(partial(_add_update, a, b)))
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _add_update(a: Tensor, b: Tensor, layer: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x = inputs[0]
    if a.dim() == 2:
        return out + F.linear(F.linear(x, a.to(x)), b.to(x))
    low = F.conv2d(x, a.to(x), None, layer.stride, layer.padding, layer.dilation)
    return out + F.conv2d(low, b.to(x))
