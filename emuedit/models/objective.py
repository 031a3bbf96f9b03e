"""Prediction type and noise levels of a scheduler, and schedulers for other objectives.

A scheduler of diffusers with `alphas_cumprod` is variance preserving and states its prediction type;
FlowMatchEulerDiscreteScheduler is flow matching. `core/diffusion.py` has the formulas of all prediction types.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from emuedit.core.diffusion import PREDICTION_TYPES, PredictionType
from emuedit.models import model_sources

Objective = Literal["base", "epsilon", "v_prediction", "sample", "flow"]
"""Prediction type of an editor; "base": the base model's."""
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
ANY_OBJECTIVE = ("DDIMScheduler", "DDPMScheduler")
"""Schedulers of diffusers that support all variance preserving prediction types and zero terminal SNR; e.g. PNDM does not."""


def prediction_type_of(scheduler: Any) -> PredictionType:
    """The prediction type of this scheduler. Raises ValueError if it does not state one."""
    if _is_flow(scheduler):
        return "flow"
    prediction_type = getattr(scheduler.config, "prediction_type", None)
    if prediction_type not in ("epsilon", "v_prediction", "sample") or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            "want a scheduler with alphas_cumprod and prediction_type epsilon, v_prediction or sample, or a "
            f"{FLOW_SCHEDULER}; got {type(scheduler).__name__} with prediction_type {prediction_type!r}; use another base model, "
            "or DDIMScheduler if this one was trained with betas"
        )
    return cast(PredictionType, prediction_type)


def training_timesteps(scheduler: Any, index: Tensor) -> Tensor:
    """The timesteps of training, int64 [B] or for flow float32 [B], from index int64 [B] in 0 ... num_train_timesteps - 1.

    For variance preserving schedulers, t is the index. For flow, t = T sigma with sigma = shift u / (1 + (shift - 1) u) and
    u = (index + 1) / T, so that sigma = 1, where sampling starts, is trained, and sigma = 0, which has no noise, is not.
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
    sigma = t / num_train_timesteps. Raises ValueError for other schedulers.
    """
    if prediction_type_of(scheduler) == "flow":
        sigma = (t.float() / scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return 1 - sigma, sigma
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t.round().long()].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def move_noise_schedule(scheduler: Any, device: torch.device) -> None:
    """Move the noise levels to the training device, to avoid a copy in every step."""
    if not _is_flow(scheduler):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)


def ends_in_noise(scheduler: Any) -> bool:
    """Whether the last timestep is noise alone: flow matching, and zero terminal SNR."""
    if _is_flow(scheduler):
        return True
    return bool(getattr(scheduler.config, "rescale_betas_zero_snr", False)) or float(scheduler.alphas_cumprod[-1]) == 0


def check_terminal_snr(scheduler: Any) -> None:
    """Raise ValueError for epsilon-prediction at zero terminal SNR.

    The last z_t is then eps itself, so the prediction has no information about the clean latents, (z_t - s e) / a with a = 0:
    DDIM gives NaN (Lin et al., arXiv 2305.08891, section 3.2).
    """
    if prediction_type_of(scheduler) == "epsilon" and ends_in_noise(scheduler):
        raise ValueError(
            f"want v_prediction, sample or flow with zero terminal SNR, got epsilon ({type(scheduler).__name__}): the last "
            "timestep is pure noise, where a prediction of the noise has no information about the image; use another "
            "objective, or a noise schedule without rescale_betas_zero_snr"
        )


def configure_scheduler(scheduler: Any, objective: Objective = "base", zero_terminal_snr: bool = False) -> Any:
    """The scheduler to train, sample and save an editor with.

    "base", or the base model's prediction type: the scheduler is unchanged. Another variance preserving objective: DDIM (or DDPM,
    if it was that) with the same betas. "flow" with such a base model: a FlowMatchEulerDiscreteScheduler with as many timesteps.
    zero_terminal_snr rescales the betas and starts sampling at the last timestep (Lin et al., arXiv 2305.08891, algorithm 1 and
    section 3.3); False keeps the base model's betas; flow always ends at zero SNR.

    Raises ValueError for epsilon with zero terminal SNR, also if the base model's config combines them; for a scheduler without
    a prediction type; and for an objective other than flow with a flow base model, which has no betas.
    """
    prediction_type = prediction_type_of(scheduler)
    target_type = prediction_type if objective == "base" else objective
    if target_type not in PREDICTION_TYPES:
        raise ValueError(f"want one of the objectives base, {', '.join(PREDICTION_TYPES)}; got {objective!r}")
    if prediction_type == "flow":
        if target_type != "flow":
            raise ValueError(f"want the objective base or flow for a base model of flow matching, got {objective!r}")
        return scheduler
    if target_type == "flow":
        flow = getattr(model_sources.import_library("diffusers"), FLOW_SCHEDULER)
        return flow(num_train_timesteps=scheduler.config.num_train_timesteps)
    if target_type != prediction_type or zero_terminal_snr:
        rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_terminal_snr else {}
        scheduler = on_same_betas(scheduler, ANY_OBJECTIVE, prediction_type=target_type, **rescaled)
    check_terminal_snr(scheduler)
    return scheduler


def on_same_betas(scheduler: Any, classes: tuple[str, ...], **changes: Any) -> Any:
    """The scheduler with config changes, of the same class if that is in `classes`, else DDIM.

    Clipping and thresholding are off: they are meant for pixels and would clip latents. Not for flow matching, which has no
    betas.
    """
    name = type(scheduler).__name__
    new_class = type(scheduler) if name in classes else model_sources.import_library("diffusers").DDIMScheduler
    return new_class.from_config(scheduler.config, clip_sample=False, thresholding=False, **changes)


def _is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__ == FLOW_SCHEDULER
