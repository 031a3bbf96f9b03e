"""Common parts of denoising loops: a new scheduler, its step, and SDXL's size conditions.

Shapes: B samples, C latent channels, h and w the height and width of the latents.
"""

from __future__ import annotations

import inspect
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
    next. n steps of flow matching are at u = 1, (n - 1) / n, ..., 1 / n, which the scheduler shifts once (Esser et al.,
    arXiv 2403.03206, Eq. 23). Raises ValueError for a scheduler that combines epsilon-prediction with zero terminal SNR, and for
    a number of steps with a timestep that is not among the scheduler's training timesteps, or whose first one is in their lower
    half, where the network expects an almost clean image in place of noise.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        objective.check_terminal_snr(scheduler)
        self.prediction_type = objective.prediction_type_of(scheduler)
        self.scheduler = type(scheduler).from_config(scheduler.config)
        if self.prediction_type == "flow":  # whose timesteps are continuous, in (0, num_train_timesteps]
            # by default diffusers shifts twice, and its last step covers only 1 / num_train_timesteps of the path
            self.scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)
            _keep_trained_timesteps(self.scheduler, steps)
            _check_start(self.scheduler, steps)
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
    """The scheduler if it is single-step, else DDIM with the same noise levels (`objective.on_same_betas`).

    Raises ValueError for a scheduler without betas (EDM): DDIM would silently take its default ones.
    """
    objective.prediction_type_of(scheduler)
    return scheduler if type(scheduler).__name__ in MEMORYLESS else objective.on_same_betas(scheduler, ())


def _keep_trained_timesteps(scheduler: Any, steps: int) -> None:
    """Drop negative timesteps of a scheduler, with their sigmas. Raises ValueError for timesteps beyond the last trained one.

    diffusers spaces trailing timesteps as arange(T, 0, -T / steps) - 1. For some numbers of steps, such as 61 of 1000, rounding
    adds a timestep -1, which as an index means the last timestep, i.e. noise. Leading timesteps are shifted by `steps_offset`,
    beyond T - 1 if there are about T of them. `num_inference_steps` stays, from which DDIM and PNDM compute their stride.
    """
    n_trained, timesteps = scheduler.config.num_train_timesteps, scheduler.timesteps.cpu()
    name, last = type(scheduler).__name__, timesteps.max().item()
    if steps > n_trained or last >= n_trained:
        raise ValueError(
            f"want timesteps from 0 to {n_trained - 1}, which were trained, got up to {last:g} ({name}, {steps} steps); "
            "use fewer steps"
        )
    kept, sigmas = timesteps >= 0, getattr(scheduler, "sigmas", None)
    if kept.all():
        return
    if sigmas is not None:
        if len(sigmas) != len(timesteps) + 1:  # such as KDPM2, with interpolated steps in between
            raise ValueError(
                f"want timesteps from 0 to {n_trained - 1}, which were trained, got {timesteps.min().item():g} ({name}, {steps} "
                f"steps); use {steps - 1} steps, or another scheduler"
            )
        scheduler.sigmas = torch.cat([sigmas[:-1][kept.to(sigmas.device)], sigmas[-1:]])
    scheduler.timesteps = scheduler.timesteps[kept.to(scheduler.timesteps.device)]


def _check_start(scheduler: Any, steps: int) -> None:
    """Raise ValueError if the first timestep is below half of the last trained one.

    With leading spacing, a single step is at the timestep `steps_offset`. Sampling that starts at a later step is not affected.
    """
    first, last_trained = scheduler.timesteps.max().item(), scheduler.config.num_train_timesteps - 1
    if first < last_trained / 2:
        raise ValueError(
            f"want a first timestep of at least {last_trained / 2:g}, as sampling starts from noise, got {first:g} "
            f"({type(scheduler).__name__}, {steps} steps); use more steps, or a scheduler with trailing timestep spacing"
        )


def size_conditions(
    pooled: Tensor | None, z_t: Tensor, factor: int, dtype: torch.dtype, sizes: Tensor | None = None, native_px: float = 0.0
) -> dict[str, Tensor] | None:
    """SDXL's `added_cond_kwargs` for latents z_t [B, C, h, w] with `factor` px per cell; None for models without pooled text.

    The size conditions are: original height and width, top and left of the crop, target height and width, in px
    (arXiv 2307.01952, section 2.2). `sizes` [B, 6] are given explicitly; None: uncropped images of the size of z_t.
    native_px: side of a square with the area of the base model's training images. A smaller original counts as one of that area,
    in training and in edits: SDXL associates small originals with blurred images. Raises ValueError for sizes of another shape.
    """
    if pooled is None:
        return None
    if sizes is None:
        height, width = z_t.shape[-2] * factor, z_t.shape[-1] * factor
        sizes = torch.tensor([height, width, 0, 0, height, width], device=z_t.device).repeat(len(z_t), 1)
    if sizes.shape != (len(z_t), 6):
        raise ValueError(f"want size conditions of the shape {(len(z_t), 6)}, one row per sample; got {tuple(sizes.shape)}")
    sizes = sizes.to(z_t.device, torch.float32)  # bfloat16 rounds 903 to 904
    original = sizes[:, :2]
    scale = (native_px / original.prod(1, keepdim=True).sqrt()).clamp(min=1)
    return {"text_embeds": pooled.to(dtype), "time_ids": torch.cat([(original * scale).round(), sizes[:, 2:]], 1)}
