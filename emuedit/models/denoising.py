"""Common parts of denoising loops: a new scheduler, its step, and SDXL's size conditions.

Shapes: B samples, C latent channels, h and w the height and width of the latents.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emuedit.core import diffusion
from emuedit.models import objective

MEMORYLESS = (
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", objective.FLOW_SCHEDULER,
)  # fmt: skip
"""Single-step schedulers, whose step does not depend on earlier steps: sampling may start at any step."""


class Denoiser:
    """A new scheduler with its timesteps set, and one CPU generator per sample if its step draws noise.

    The pipeline's scheduler is never stepped: some keep a history, which would leak from one call into the
    next. Raises ValueError for a scheduler that combines epsilon-prediction with zero terminal SNR.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        objective.check_terminal_snr(scheduler)
        self.prediction_type = objective.prediction_type_of(scheduler)
        self.scheduler = type(scheduler).from_config(scheduler.config)
        self.scheduler.set_timesteps(steps, device=device)
        self.generators = list(generators)
        self.draws_noise = "generator" in inspect.signature(self.scheduler.step).parameters

    @property
    def timesteps(self) -> Tensor:
        """The timesteps in the order of the steps."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the latents before the first step."""
        z: Tensor = noise if self.prediction_type == "flow" else noise * self.scheduler.init_noise_sigma
        return z

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Latents z and standard normal noise eps, both [B, C, h, w] -> the latents at timestep t, scaled like `start`."""
        if self.prediction_type == "flow":
            return diffusion.add_noise(z, eps, *self.noise_levels(t, z))
        z_t: Tensor = self.scheduler.add_noise(z, eps, t[None])
        return z_t

    def scale(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The network's input at timestep t."""
        scaled: Tensor = z_t if self.prediction_type == "flow" else self.scheduler.scale_model_input(z_t, t)
        return scaled

    def step(self, e: Tensor, t: Tensor, z_t: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """From z_t [B, C, h, w] and the prediction e at timestep t to the latents of the next timestep.

        `generators`: of the B samples; None: those given at the start.
        """
        extra = {"generator": list(self.generators if generators is None else generators)} if self.draws_noise else {}
        z: Tensor = self.scheduler.step(e, t, z_t, **extra, return_dict=False)[0]
        return z

    def noise_levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) of the network's input at timestep t, with dtype and device of `like`, both [1, 1, 1, 1]."""
        a, s = objective.noise_levels(self.scheduler, t.cpu())
        return a.to(like), s.to(like)


def memoryless_scheduler(scheduler: Any) -> Any:
    """The scheduler if it is single-step, else DDIM with the same noise levels (`objective.on_same_betas`)."""
    return scheduler if type(scheduler).__name__ in MEMORYLESS else objective.on_same_betas(scheduler, ())


def size_conditions(
    pooled: Tensor | None, z_t: Tensor, factor: int, dtype: torch.dtype, sizes: Tensor | None = None, native_px: float = 0.0
) -> dict[str, Tensor] | None:
    """SDXL's `added_cond_kwargs` for latents z_t [B, C, h, w] with `factor` px per cell; None for models without pooled text.

    The size conditions are: original height and width, top and left of the crop, target height and width, in px
    (arXiv 2307.01952, section 2.2). `sizes` [B, 6] are given explicitly; None: uncropped images of the size of z_t.
    native_px: side of a square with the area of the base model's training images. Smaller images, such as generated pairs of a
    training at a smaller size, were downscaled from that area; SDXL associates small originals with blurred images. Raises
    ValueError for sizes of another shape.
    """
    if pooled is None:
        return None
    if sizes is None:
        height, width = z_t.shape[-2] * factor, z_t.shape[-1] * factor
        scale = max(1.0, native_px / math.sqrt(height * width))
        original = round(height * scale), round(width * scale)
        sizes = torch.tensor([*original, 0, 0, height, width], device=z_t.device, dtype=torch.float32).repeat(len(z_t), 1)
    if sizes.shape != (len(z_t), 6):
        raise ValueError(f"want size conditions of the shape {(len(z_t), 6)}, one row per sample; got {tuple(sizes.shape)}")
    return {"text_embeds": pooled.to(dtype), "time_ids": sizes.to(z_t.device, torch.float32)}  # bfloat16 rounds 903 to 904
