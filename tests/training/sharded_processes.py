"""FSDP2 on CPUs, which accelerate offers on GPUs alone: small nets under `fully_shard`, in this process or in several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import accelerate
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from emuedit.editor.settings import EditSettings
from emuedit.tracking import stats
from emuedit.training import loop
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import open_accelerator
from emuedit.training.loop import Preview, TrainLoop
from emuedit.training.memory.memory_estimator import FSDP_UNITS
from emuedit.training.train_settings import TrainSettings
from tests.training.tiny_training import make_editor

PREVIEW = EditSettings(steps=2, image_guidance_scale=1.5, guidance_scale=3.0)


class ShardingAccelerator(accelerate.Accelerator):
    """Shards the weights as `infra/accelerate/fsdp.yaml` does."""

    distributed_type = DistributedType.FSDP
    is_fsdp2 = True
    reshard_after_forward = True

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:  # type: ignore[override]
        """The same module, sharded in place, and accelerate's wrapper of the optimizer with the sharded weights."""
        names = {value: name for name, value in module.named_parameters()}
        groups = [[names[value] for value in group["params"]] for group in optimizer.param_groups]
        shard_layers(module, self.reshard_after_forward)
        sharded = dict(module.named_parameters())
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [sharded[name] for name in members]
        wrapped = AcceleratedOptimizer(optimizer, device_placement=False, scaler=self.scaler)
        self._models.append(module)
        self._optimizers.append(wrapped)
        return module, wrapped

    def no_sync(self, model: nn.Module) -> NoReturn:  # type: ignore[override]
        """FSDP would keep the gradients of all weights in each process."""
        raise AssertionError("want gradients that are shared out after each pass")


def shard_layers(module: nn.Module, reshard_after_forward: bool = True, policy: MixedPrecisionPolicy | None = None) -> nn.Module:
    """Shard a network over all processes, its large layers each by itself."""
    mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy()}
    for layer in list(module.modules()):
        if type(layer).__name__ in FSDP_UNITS:
            fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    return fully_shard(module, reshard_after_forward=reshard_after_forward, **options)


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


def train_with_previews(cache_folder: Path, scratch: Path, settings: TrainSettings, is_sharded: bool) -> None:
    """Train a tiny editor, sharded over the processes or in this one alone; each writes the pictures of its last preview."""
    stats._Mirror._try = lambda mirror: None  # type: ignore[method-assign]
    loop.count_flops = lambda *arguments: 1
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    editor, cache = make_editor(settings), LatentCache(cache_folder, settings.held_out_share)

    def show(step: int) -> dict[str, float]:
        with editor.sampling() as sampler:
            edited = sampler.sample(torch.zeros(2, 3, 64, 64), ["make it red"] * 2, editor.net.table.names[:2], PREVIEW).images
        torch.save(edited, scratch / f"preview-{os.environ.get('RANK', '0')}.pt")
        return {"success": float(edited.mean())}

    with sharding_accelerator() if is_sharded else open_accelerator("cpu") as accelerator:
        TrainLoop(editor, cache, settings, scratch, accelerator, Preview(0.0, show)).run()
