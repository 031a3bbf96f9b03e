"""Convert between sharded and full tensors: with FSDP every weight is a DTensor, of which each process has one part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, detached, sharing its memory. Other tensors are returned as they are."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_number(tensor: Tensor) -> int:
    """Index from 0 of this process's part of a sharded tensor; 0 for other tensors. Replicas have equal indices."""
    if not isinstance(tensor, DTensor):
        return 0
    number, mesh = 0, tensor.device_mesh
    for coordinate, size, placement in zip(mesh.get_coordinate() or (), mesh.shape, tensor.placements, strict=False):
        number = number * size + coordinate if placement.is_shard() else number
    return number


def to_full(tensor: Tensor) -> Tensor:
    """The full tensor, detached. For a sharded tensor, all processes must call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor, keep: bool) -> Tensor | None:
    """A full tensor to write to a file. For a sharded tensor, all processes must call this.

    Returns it in CPU memory if `keep`, else None. It is freed from the GPU before the next one, so a GPU need not have room for
    all of them.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    full = to_full(tensor)
    return full.cpu() if keep else None


def like_sharded(full: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor, moved to the device of `tensor` and sharded like it."""
    full = full.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return full
    return distribute_tensor(full, tensor.device_mesh, tensor.placements)


@contextmanager
def gathered_root(module: nn.Module) -> Iterator[None]:
    """Context manager: the weights outside FSDP's units are gathered inside the block, so that submodules can be called.

    Otherwise they are gathered only in a forward pass of `module`; the units gather their weights themselves. All processes
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
    """Make FSDP gather the weights again in the next forward pass, because they change outside its optimizer.

    After a forward pass without a backward pass, FSDP may keep them (`fsdp_reshard_after_forward: false`).
    """
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()
