"""Memory and speed of a training: an estimate before it starts, and measurements while it runs."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import TYPE_CHECKING

import torch

from emuedit.training.batches.aspect_buckets import Size
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import TrainingProcesses, n_passes
from emuedit.training.memory.flops import forward_flops, mfu, training_flops
from emuedit.training.memory.memory_check import check_fits
from emuedit.training.memory.memory_estimator import MemoryEstimator
from emuedit.training.memory.memory_plan import GIB, MemoryPlan
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor

if TYPE_CHECKING:
    from accelerate import Accelerator

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`."""


def check_memory(
    editor: TrainableEditor, size: Size, settings: TrainSettings, processes: TrainingProcesses, previews: bool
) -> list[str]:
    """The estimate as lines to print. Raises MemoryFitError, with possible savings, if the training cannot fit.

    size: (height, width) in px of the largest images. previews: whether there are any. On several GPUs, the memory of the first
    one is compared. Devices with unknown memory or without an estimate are not checked.
    """
    if processes.device_type not in ("cuda", "cpu"):
        return []
    passes = n_passes(settings.batch_size, settings.accumulation_steps, processes.n)
    plan = MemoryPlan(
        micro_batch=settings.batch_size // (passes * processes.n),
        latent=_latent(editor, size),
        n_tokens=editor.parts.tokenizer.model_max_length,
        device="cuda" if processes.device_type == "cuda" else "cpu",
        dtype="float32" if settings.dtype == "auto" else settings.dtype,
        gradient_checkpointing=settings.gradient_checkpointing,
        passes=passes,
        compile=settings.compile,
        lora=settings.lora,
        optimizer=settings.optimizer,
        ema_device=settings.ema_device,
        ema_dtype=settings.ema_dtype,
        world_size=processes.n,
        fsdp=processes.is_sharded,
        previews=previews,
    )
    frozen = [editor.parts.vae, *([] if len(editor.text) else editor.parts.text_encoders)]
    estimator = MemoryEstimator(editor.net, list(editor.text), frozen)
    estimate = estimator.estimate(plan)
    warning = check_fits(estimate, torch.device(processes.device), lambda: estimator.savings(plan))
    return [f"memory {estimate}", *([warning] if warning else [])]


def count_flops(editor: TrainableEditor, cache: LatentCache, settings: TrainSettings) -> int:
    """FLOPs of a training sample of the largest size. Call it before `TrainableEditor.prepare`."""
    n_tokens, size = editor.parts.tokenizer.model_max_length, max(cache.sizes, key=math.prod)
    forward = forward_flops(editor.net, _latent(editor, size), n_tokens, list(editor.text))
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
        """`samples_per_second` over all devices, `mfu` (see `flops.mfu`) and `memory_gib`, the peak so far.

        The memory is that of tensors on a GPU, and on a CPU the resident memory of this process.
        """
        speed = self.batch_size * (step - self._step) / (time.monotonic() - self._time)
        metrics = {"samples_per_second": speed}
        metrics["mfu"] = mfu(self.flops_per_sample, speed / self.n_devices, self.device, self.dtype)
        if self.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        elif self.device.type == "cpu":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            metrics["memory_gib"] = peak * _MAXRSS_UNIT / GIB
        return metrics


def _latent(editor: TrainableEditor, size: Size) -> tuple[int, int, int]:
    """(C, h, w) of images of this size, (height, width) in px."""
    height, width = size
    return editor.parts.channels, height // editor.parts.factor, width // editor.parts.factor
