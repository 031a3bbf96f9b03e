"""FSDP2 on CPUs, which accelerate offers on GPUs alone: small nets under `fully_shard`, in this process or in several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.utils import DistributedType
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from emuedit.training.distributed import open_accelerator
from emuedit.training.memory import FSDP_UNITS


class ShardingAccelerator(accelerate.Accelerator):
    """Shards the weights as `infra/accelerate/fsdp.yaml` does."""

    distributed_type = DistributedType.FSDP
    is_fsdp2 = True
    reshard_after_forward = True

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:  # type: ignore[override]
        """The same module, sharded in place, and the same optimizer with the sharded weights."""
        names = {value: name for name, value in module.named_parameters()}
        groups = [[names[value] for value in group["params"]] for group in optimizer.param_groups]
        shard_layers(module, self.reshard_after_forward)
        sharded = dict(module.named_parameters())
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [sharded[name] for name in members]
        return module, optimizer


def shard_layers(module: nn.Module, reshard_after_forward: bool = True) -> nn.Module:
    """Shard a network over all processes, its large layers each by itself."""
    mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in list(module.modules()):
        if type(layer).__name__ in FSDP_UNITS:
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    return fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


@contextmanager
def sharding_accelerator(dtype: str = "float32") -> Iterator[ShardingAccelerator]:
    """The accelerator of this process."""
    with open_accelerator("cpu", dtype) as accelerator:
        accelerator.__class__ = ShardingAccelerator
        yield accelerator  # type: ignore[misc]


@contextmanager
def lone_process(folder: Path) -> Iterator[None]:
    """A group of this process alone, which shards its weights into one part."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
