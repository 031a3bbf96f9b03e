"""Whole tensors from sharded ones and back: FSDP keeps every weight as a DTensor, of which a process has one part."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def to_full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached. For a sharded one every process must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like_sharded(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, on the device of `tensor` and sharded like it."""
    full = full.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return full
    return distribute_tensor(full, tensor.device_mesh, tensor.placements)
