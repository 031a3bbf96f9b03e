"""What a network predicts and at which noise levels, as its scheduler states it; and the scheduler of another objective.

A scheduler of diffusers with `alphas_cumprod` is variance preserving and names its prediction type;
FlowMatchEulerDiscreteScheduler is flow matching. `core/diffusion.py` has the formulas of all kinds.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from emuedit.core.diffusion import KINDS, PredictionKind
from emuedit.models import model_sources

Objective = Literal["base", "epsilon", "v_prediction", "sample", "flow"]
"""What an editor learns to predict; "base": what its base model predicts."""
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
ANY_OBJECTIVE = ("DDIMScheduler", "DDPMScheduler")
"""Schedulers of diffusers that take every variance preserving kind and zero terminal SNR; PNDM, for example, has neither."""


def kind_of(scheduler: Any) -> PredictionKind:
    """What the network of this scheduler predicts. Raises ValueError for a scheduler that does not state it."""
    if _is_flow(scheduler):
        return "flow"
    kind = getattr(scheduler.config, "prediction_type", None)
    if kind not in ("epsilon", "v_prediction", "sample") or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "want a scheduler with alphas_cumprod and prediction_type epsilon, v_prediction or sample, or a "
            f"{FLOW_SCHEDULER}; got {type(scheduler).__name__} with prediction_type {kind!r}; take DDIMScheduler"
        )
    return cast(PredictionKind, kind)


def training_timesteps(scheduler: Any, index: Tensor) -> Tensor:
    """The timesteps of training, int64 [B] or for flow float32 [B], from index int64 [B] in 0 ... num_train_timesteps - 1.

    They are the same for variance preserving schedulers. For flow they are T sigma with sigma = shift u / (1 + (shift - 1) u)
    and u = (index + 1) / T, so that sigma = 1, at which sampling starts, is trained and sigma = 0, which has no noise, is not.
    These are the timesteps of a new FlowMatchEulerDiscreteScheduler (Esser et al., arXiv 2403.03206, Eq. 23).
    """
    if not _is_flow(scheduler):
        return index
    T, shift = scheduler.config.num_train_timesteps, scheduler.config.shift
    u = (index + 1).float() / T
    return shift * u / (1 + (shift - 1) * u) * T


def noise_levels(scheduler: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """(a, s) of z_t = a z + s eps at timesteps t [B] or scalar; float32 [B, 1, 1, 1] on the device of t.

    Variance preserving: a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar) at the nearest whole timestep. Flow: a = 1 - sigma, s =
    sigma = t / num_train_timesteps. Raises ValueError for a scheduler that states neither.
    """
    if kind_of(scheduler) == "flow":
        sigma = (t.float() / scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return 1 - sigma, sigma
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t.round().long()].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def move_noise_schedule(scheduler: Any, device: torch.device) -> None:
    """Keep the noise levels on the device that trains, so that no step waits for them to travel there."""
    if not _is_flow(scheduler):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)


def check_terminal_snr(scheduler: Any) -> None:
    """Raise ValueError for epsilon-prediction at zero terminal SNR.

    There the last z_t is eps itself, so the prediction says nothing about the clean latents, which are (z_t - s e) / a with a
    = 0: DDIM gives NaN (Lin et al., arXiv 2305.08891, section 3.2).
    """
    if kind_of(scheduler) != "epsilon":
        return
    if getattr(scheduler.config, "rescale_betas_zero_snr", False) or float(scheduler.alphas_cumprod[-1]) == 0:
        raise ValueError(
            f"want v_prediction, sample or flow with zero terminal SNR, got epsilon ({type(scheduler).__name__}): the last "
            "timestep is pure noise, from which a prediction of the noise tells nothing about the image; take another "
            "objective, or a noise schedule without rescale_betas_zero_snr"
        )


def configure_scheduler(
    scheduler: Any, objective: Objective = "base", zero_terminal_snr: bool = False, shift: float = 1.0
) -> Any:
    """The scheduler with which an editor is trained and sampled, and which is saved in its folder.

    "base", or the kind that the base model predicts: the scheduler as it is. Another variance preserving objective: DDIM (or
    DDPM, where it was that) with the same betas. "flow" on such a base model: a FlowMatchEulerDiscreteScheduler with as many
    timesteps; `shift` above 1 moves its timesteps, in training and sampling, towards noise (Esser et al., arXiv 2403.03206,
    section 5.3.2). zero_terminal_snr rescales the betas and samples from the last timestep on (Lin et al., arXiv 2305.08891,
    algorithm 1 and section 3.3); False leaves the base model's betas as they are, and flow ends at zero SNR anyway.

    Raises ValueError for epsilon with zero terminal SNR, also where the base model's own config combines them; for a scheduler
    that states no kind; and for another objective than flow on a flow base model, which has no betas.
    """
    kind = kind_of(scheduler)
    target_kind = kind if objective == "base" else objective
    if target_kind not in KINDS:
        raise ValueError(f"want an objective out of base, {', '.join(KINDS)}; got {objective!r}")
    if kind == "flow":
        if target_kind != "flow":
            raise ValueError(f"want the objective base or flow for a base model of flow matching, got {objective!r}")
        return scheduler
    if target_kind == "flow":
        flow = getattr(model_sources.import_library("diffusers"), FLOW_SCHEDULER)
        return flow(num_train_timesteps=scheduler.config.num_train_timesteps, shift=shift)
    if target_kind != kind or zero_terminal_snr:
        rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_terminal_snr else {}
        scheduler = on_same_betas(scheduler, ANY_OBJECTIVE, prediction_type=target_kind, **rescaled)
    check_terminal_snr(scheduler)
    return scheduler


def on_same_betas(scheduler: Any, classes: tuple[str, ...], **changes: Any) -> Any:
    """The scheduler with some values of its config changed: of its own class where that is in `classes`, else DDIM.

    It neither clips nor thresholds: those options are meant for models of pixels, and would cut latents. Raises ValueError for
    flow matching, which has no betas.
    """
    if _is_flow(scheduler):
        raise ValueError(f"want a scheduler with betas, which DDIM needs, got {FLOW_SCHEDULER}; take a base model without flow")
    name = type(scheduler).__name__
    new_class = type(scheduler) if name in classes else model_sources.import_library("diffusers").DDIMScheduler
    return new_class.from_config(scheduler.config, clip_sample=False, thresholding=False, **changes)


def _is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__ == FLOW_SCHEDULER
