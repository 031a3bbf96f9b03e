"""Whole tensors from sharded ones and back: FSDP keeps every weight as a DTensor, of which a process has one part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has, detached: it shares its memory. Of others the tensor itself."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_number(tensor: Tensor) -> int:
    """Which part of a sharded tensor this process has, counted from 0; of others 0. Processes with equal parts agree."""
    if not isinstance(tensor, DTensor):
        return 0
    number, mesh = 0, tensor.device_mesh
    for coordinate, size, placement in zip(mesh.get_coordinate() or (), mesh.shape, tensor.placements, strict=False):
        number = number * size + coordinate if placement.is_shard() else number
    return number


def to_full(tensor: Tensor) -> Tensor:
    """The whole tensor, detached. For a sharded one every process must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor, keep: bool) -> Tensor | None:
    """A whole tensor to write to a file; for a sharded one every process must call this.

    It is in CPU memory where `keep` says so, otherwise None, and leaves the GPU before the next one: a GPU need not have room for
    all of them.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    full = to_full(tensor)
    return full.cpu() if keep else None


def like_sharded(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, on the device of `tensor` and sharded like it."""
    full = full.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return full
    return distribute_tensor(full, tensor.device_mesh, tensor.placements)


@contextmanager
def gathered_root(module: nn.Module) -> Iterator[None]:
    """The weights outside of FSDP's layers are whole inside of the `with` block, so that parts of the network can be called.

    Otherwise they are only inside of a forward pass of `module`; the layers gather their weights themselves. All processes
    must make the same calls.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def free_gathered(module: nn.Module) -> None:
    """Let FSDP gather the weights of a network anew in the next forward pass, because they change outside of its optimizer.

    After a forward pass without a backward pass FSDP may keep them (`fsdp_reshard_after_forward: false`).
    """
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()
