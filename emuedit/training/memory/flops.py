"""FLOPs per training sample, and the utilisation of a device in training.

A multiplication and an addition are two floating-point operations (FLOPs). Only matrix products and convolutions are counted,
which are nearly all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from emuedit.editor.unet import EditorUNet
from emuedit.training.memory.activation_memory import MetaOperators
from emuedit.training.memory.meta_step import editor_loss, meta_copy

MEASURE_S = 0.2
"""Seconds of timed matrix products."""
_SMALLEST, _LARGEST, _LONG_ENOUGH_S = 256, 8192, 0.01
"""Smallest and largest matrix size; it is doubled until a product takes this long."""


def forward_flops(net: EditorUNet, latent: tuple[int, int, int], n_tokens: int, text_encoders: Sequence[nn.Module] = ()) -> int:
    """FLOPs of a forward pass of one sample, including attention; counted on meta tensors.

    latent: (C, h, w). n_tokens: L of the instruction. `text_encoders`: the trained ones. Stable Diffusion 1.5 at
    512 px takes 0.8e12, published as about 0.4e12 multiply-adds.
    """
    meta_net, meta_encoders = meta_copy(net), [meta_copy(encoder) for encoder in text_encoders]
    with _FlopCounter() as counter, torch.no_grad():
        editor_loss(meta_net, meta_encoders, latent, n_tokens, batch_size=1)
    return counter.total


class _FlopCounter(TorchDispatchMode):
    """Counts like PyTorch's `FlopCounterMode` in half the time: it caches shapes and has no module tree."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._call = MetaOperators()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count its operations."""
        out = self._call(func, args, kwargs or {})
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs or {}, out_val=out)
        return out


def training_flops(forward: int, lora: bool = False, gradient_checkpointing: bool = False) -> int:
    """FLOPs of a training step per sample, from those of its forward pass.

    A backward pass has two products per product of the forward pass: gradients of the layer's input and of its weight.
    With LoRA the second is omitted, and adapters of small rank are neglected. Gradient checkpointing recomputes nearly the whole
    forward pass; model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B) does not count that.
    """
    return forward * ((2 if lora else 3) + (1 if gradient_checkpointing else 0))


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOPs per second of a large matrix product on a device, not the manufacturer's value.

    Measured once per process, in a fraction of a second. The fastest of several timings is used, to reduce the effect of other
    processes.
    """
    n = _SMALLEST
    while (duration := _time_product(n, device, dtype, repetitions_s=0)) < _LONG_ENOUGH_S and n < _LARGEST:
        n *= 2
    return 2 * n**3 / min(duration, _time_product(n, device, dtype, MEASURE_S))


def mfu(flops_per_sample: int, samples_per_second: float, device: torch.device, dtype: torch.dtype) -> float:
    """Model FLOPs utilization: FLOPs per second of a training divided by `peak_flops`, in [0, 1] up to noise.

    `samples_per_second`: of one device. `dtype`: of the matrix products, in mixed-precision training.
    """
    return flops_per_sample * samples_per_second / peak_flops(device, dtype)


def _time_product(n: int, device: torch.device, dtype: torch.dtype, repetitions_s: float) -> float:
    """Seconds of the fastest n x n matrix product, over at least two and as many as fit into `repetitions_s`."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    durations: list[float] = []
    end = time.perf_counter() + repetitions_s
    while len(durations) < 2 or time.perf_counter() < end:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        durations.append(time.perf_counter() - start)
    return min(durations)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
