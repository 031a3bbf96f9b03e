"""What every denoising loop needs, in one place: a fresh scheduler, its step, and SDXL's size conditions.

Shapes: B samples, C latent channels, h and w the height and width of the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emuedit.models import model_sources

MEMORYLESS = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
"""Schedulers whose step needs nothing of the steps before it: a sample may start in the middle."""


class Denoiser:
    """A fresh scheduler with its timesteps set, and one CPU generator per sample where its step draws noise.

    A scheduler of the pipeline is never stepped itself: some keep a history, which would leak from one call into the
    next.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self.scheduler = type(scheduler).from_config(scheduler.config)
        self.scheduler.set_timesteps(steps, device=device)
        self.generators = list(generators)
        self.draws_noise = "generator" in inspect.signature(self.scheduler.step).parameters

    @property
    def timesteps(self) -> Tensor:
        """The timesteps in the order in which they are visited."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the latents before the first step."""
        z: Tensor = noise * self.scheduler.init_noise_sigma
        return z

    def scale(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The network's input at timestep t."""
        scaled: Tensor = self.scheduler.scale_model_input(z_t, t)
        return scaled

    def step(self, e: Tensor, t: Tensor, z_t: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """From z_t [B, C, h, w] and the prediction e at timestep t to the latents of the next timestep.

        `generators`: those of the B samples, where they are not the ones given at the start.
        """
        extra = {"generator": list(self.generators if generators is None else generators)} if self.draws_noise else {}
        z: Tensor = self.scheduler.step(e, t, z_t, **extra, return_dict=False)[0]
        return z

    def alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar at timestep t as a number of the dtype and on the device of `like`, [1, 1, 1, 1]."""
        return self.scheduler.alphas_cumprod[t.round().long().cpu()].to(like).view(1, 1, 1, 1)


def memoryless_scheduler(scheduler: Any, always_ddim: bool = False) -> Any:
    """The scheduler itself where its step needs no history, else DDIM on the same noise levels.

    DDIM then neither clips nor thresholds: those options are meant for models of pixels, and would cut latents.
    """
    if type(scheduler).__name__ in MEMORYLESS and not always_ddim:
        return scheduler
    ddim = model_sources.import_library("diffusers").DDIMScheduler
    return ddim.from_config(scheduler.config, clip_sample=False, thresholding=False)


def size_conditions(pooled: Tensor | None, z_t: Tensor, factor: int, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """SDXL's `added_cond_kwargs` for latents z_t [B, C, h, w] of `factor` px a cell; None for models without pooled text.

    The size conditions are: original size, crop corner, target size (arXiv 2307.01952, section 2.2).
    """
    if pooled is None:
        return None
    height, width = z_t.shape[-2] * factor, z_t.shape[-1] * factor
    ids = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=dtype)
    return {"text_embeds": pooled.to(dtype), "time_ids": ids.repeat(len(z_t), 1)}
