"""Memory and speed of a training: an estimate before it starts, and measurements while it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from emuedit.training.distributed import is_sharded, n_passes
from emuedit.training.flops import forward_flops, mfu, training_flops
from emuedit.training.latent_cache import LatentCache
from emuedit.training.memory import MemoryEstimator
from emuedit.training.memory_check import check_fits
from emuedit.training.memory_plan import GIB, MemoryPlan
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_memory(editor: TrainableEditor, cache: LatentCache, settings: TrainSettings, accelerator: Accelerator) -> list[str]:
    """The estimate as lines to print. Raises MemoryFitError, with possible savings, if the training cannot fit.

    Devices with unknown memory or without an estimate are not checked.
    """
    device = accelerator.device
    if device.type not in ("cuda", "cpu"):
        return []
    passes = n_passes(settings.batch_size, settings.accumulation_steps, accelerator.num_processes)
    plan = MemoryPlan(
        micro_batch=settings.batch_size // (passes * accelerator.num_processes),
        latent=_largest_latent(editor, cache),
        n_tokens=editor.base_model.tokenizer.model_max_length,
        device="cuda" if device.type == "cuda" else "cpu",
        dtype="float32" if settings.dtype == "auto" else settings.dtype,
        gradient_checkpointing=settings.gradient_checkpointing,
        passes=passes,
        compile=settings.compile,
        lora=settings.lora,
        optimizer=settings.optimizer,
        ema_device=settings.ema_device,
        ema_dtype=settings.ema_dtype,
        world_size=accelerator.num_processes,
        fsdp=is_sharded(accelerator),
    )
    estimator = MemoryEstimator(editor.net, list(editor.text))
    estimate = estimator.estimate(plan)
    warning = check_fits(estimate, device, lambda: estimator.savings(plan))
    return [f"memory {estimate}", *([warning] if warning else [])]


def count_flops(editor: TrainableEditor, cache: LatentCache, settings: TrainSettings) -> int:
    """FLOPs of a training sample of the largest size. Call it before `TrainableEditor.prepare`."""
    n_tokens = editor.base_model.tokenizer.model_max_length
    forward = forward_flops(editor.net, _largest_latent(editor, cache), n_tokens, list(editor.text))
    return training_flops(forward, lora=settings.lora is not None)


class SpeedMeter:
    """Samples per second, peak memory and MFU of a training since the last reading."""

    def __init__(self, settings: TrainSettings, flops_per_sample: int, accelerator: Accelerator, step: int) -> None:
        """Counts from `step` on."""
        self.batch_size, self.n_devices, self.device = settings.batch_size, accelerator.num_processes, accelerator.device
        self.dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
        self.flops_per_sample = flops_per_sample
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start counting at this step, to exclude e.g. an evaluation."""
        self._step, self._time = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """`samples_per_second` over all devices, `mfu` (see `flops.mfu`) and on a GPU `memory_gib`, its peak so far."""
        speed = self.batch_size * (step - self._step) / (time.monotonic() - self._time)
        metrics = {"samples_per_second": speed}
        metrics["mfu"] = mfu(self.flops_per_sample, speed / self.n_devices, self.device, self.dtype)
        if self.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        return metrics


def _largest_latent(editor: TrainableEditor, cache: LatentCache) -> tuple[int, int, int]:
    """(C, h, w) of the largest images."""
    height, width = max(cache.sizes, key=lambda size: size[0] * size[1])
    return editor.base_model.channels, height // editor.base_model.factor, width // editor.base_model.factor
