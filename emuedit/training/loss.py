"""The training loss: the prediction error for a noised target latent, given image, instruction and task.

The scheduler defines prediction type (eps, v, clean latents or velocity) and noise levels, see `models/objective.py`.

Shapes: B samples, C latent channels, h and w latent sizes. All random draws are in `NoiseDraws`, which depends only on (seed,
step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from emuedit import config
from emuedit.core import diffusion
from emuedit.editor.unet import EditorUNet
from emuedit.models import objective
from emuedit.models.text_to_image import TextCondition
from emuedit.runtime import generator
from emuedit.training.batches.batch import Batch, to_device

TimestepSampling = Literal["power", "logit_normal"]


class ConditionDropout(config.Params):
    """Condition dropout for classifier-free guidance; shares of samples.

    The defaults are InstructPix2Pix's (arXiv 2211.09800).
    """

    text: float = Field(0.05, ge=0, le=1)
    """Only the instruction is replaced by the null text."""
    image: float = Field(0.05, ge=0, le=1)
    """Only the image is replaced by zeros."""
    both: float = Field(0.05, ge=0, le=1)
    """Both are replaced."""

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if (total := self.text + self.image + self.both) > 1 + 1e-6:
            raise ValueError(
                f"want text, image and both of condition dropout to sum to at most 1, got {total:g}; lower one of them"
            )
        return self


NO_DROPOUT = ConditionDropout(text=0.0, image=0.0, both=0.0)


class LossWeights(config.Params):
    """Timestep sampling and loss weights. The defaults are unweighted: Eq. 2 of Emu Edit.

    Ours unless a source is given. Settings for changed cells need a change-mask head.
    """

    timestep_sampling: TimestepSampling = "power"
    """Distribution of the timesteps: power (`timestep_power`), or logit_normal, which favours middle timesteps: T
    sigmoid(x) with x standard normal (Esser et al., arXiv 2403.03206, section 3.1, for flow matching)."""
    timestep_power: tuple[float, float] = (1.0, 1.0)
    """Timesteps of the distribution power are T u^x with u uniform; x goes from the first to the second value during training. 1
    is uniform; below 1 noisy timesteps are drawn more often."""
    min_latent_change: float = Field(0.15, gt=0)
    """A latent cell is changed if its latents differ by more (mean over channels). Units of the latents, whose standard deviation
    is about 1 by the VAE's scaling factor."""
    mask_balance: float = Field(0.0, ge=0, le=1)
    """Errors in the changed and in the unchanged region are weighted by (region's share of the image)^-mask_balance: 0: all cells
    have equal weight, 1: both regions have equal weight."""
    background_weight: float = Field(1.0, gt=0)
    """Weight of an error in an unchanged cell relative to one in a changed cell."""
    change_loss_weight: float = Field(0.0, ge=0)
    """Weight of the change-mask head's cross-entropy relative to the denoising error."""
    change_mask_balance: float = Field(0.0, ge=0, le=1)
    """Like `mask_balance`, for the change-mask head."""

    @field_validator("timestep_power")
    @classmethod
    def _check_positive(cls, powers: tuple[float, float]) -> tuple[float, float]:
        if min(powers) <= 0:
            raise ValueError(f"want two exponents above 0, got {list(powers)}")
        return powers

    @model_validator(mode="after")
    def _check_one_distribution(self) -> Self:
        if self.timestep_sampling == "logit_normal" and self.timestep_power != (1.0, 1.0):
            raise ValueError(
                f"want timestep_power [1.0, 1.0] with timestep_sampling logit_normal, got {list(self.timestep_power)}; remove it"
            )
        return self

    def power_at(self, progress: float) -> float:
        """The exponent of the timesteps at this fraction of the training."""
        first, last = self.timestep_power
        return first + (last - first) * progress


UNWEIGHTED = LossWeights()


@dataclass(frozen=True)
class NoiseDraws:
    """All random draws of one step."""

    t: Tensor  # indices of timesteps, int64 [B] (`objective.training_timesteps`)
    eps: Tensor  # [B, C, h, w]
    no_text: Tensor  # bool [B]
    no_image: Tensor  # bool [B]

    def rows(self, rows: slice) -> NoiseDraws:
        """The draws of these samples."""
        return NoiseDraws(self.t[rows], self.eps[rows], self.no_text[rows], self.no_image[rows])

    def to(self, device: torch.device) -> NoiseDraws:
        """The draws on a device."""
        return NoiseDraws(*(to_device(x, device) for x in (self.t, self.eps, self.no_text, self.no_image)))


def draw_noise(
    shape: tuple[int, ...],
    n_timesteps: int,
    dropout: ConditionDropout,
    timestep_power: float,
    *keys: str | int,
    timestep_sampling: TimestepSampling = "power",
) -> NoiseDraws:
    """Draws on the CPU for latents of `shape`; depend only on the keys.

    Timesteps are stratified: each of the B equal parts of [0, 1) has one sample, with its own offset in the part. The
    low-discrepancy sampler of VDM (arXiv 2107.00630) has one offset for all parts. `timestep_power` applies only to the
    distribution power (`LossWeights`).
    """
    random = generator("editor", *keys)
    u = (torch.randperm(shape[0], generator=random) + torch.rand(shape[0], generator=random)) / shape[0]
    share = u**timestep_power if timestep_sampling == "power" else torch.special.ndtri(u).sigmoid()  # relative timestep
    t = (n_timesteps * share).long().clamp_max(n_timesteps - 1)
    eps = torch.randn(shape, generator=random)
    u_dropout = torch.rand(shape[0], generator=random)  # [0, 1) is split into [text | both | image | nothing dropped]
    no_text = u_dropout < dropout.text + dropout.both
    no_image = (u_dropout >= dropout.text) & (u_dropout < dropout.text + dropout.both + dropout.image)
    return NoiseDraws(t, eps, no_text, no_image)


class LossParts(NamedTuple):
    """The parts of each sample's loss; a batch's loss is their mean."""

    denoising: Tensor  # weighted mean squared error, [B] (Eq. 2 of Emu Edit)
    change_mask: Tensor | None  # cross-entropy of the change mask, [B]; None without the head

    def total(self, weights: LossWeights) -> Tensor:
        """The loss of each sample, [B]."""
        return self.denoising if self.change_mask is None else self.denoising + weights.change_loss_weight * self.change_mask


def refuse_min_snr(min_snr_gamma: float | None, setting: str, advice: str) -> None:
    """Raise ValueError if min-SNR weights timesteps although, with this `setting`, the last one is pure noise."""
    if min_snr_gamma is not None:
        raise ValueError(
            f"want min_snr_gamma null with {setting}, got {min_snr_gamma}: the pure-noise step, with which every edit "
            f"starts, would have no weight; {advice}"
        )


def loss_parts(
    net: EditorUNet,
    scheduler: Any,
    batch: Batch,
    draws: NoiseDraws,
    v: Tensor,
    weights: LossWeights,
    min_snr_gamma: float | None = None,
) -> LossParts:
    """The denoising error and the change-mask loss of each sample.

    The latter is the cross-entropy for samples with all conditions, 0 for others. Without the head all cells have equal weight,
    which is Eq. 2. v [B, D_v] is never dropped, because guidance always uses it.
    `min_snr_gamma` weights the error by min-SNR (`diffusion.min_snr_weight`); None: no weighting.
    """
    device = batch.target.device
    eps = draws.eps.to(batch.target)
    t = objective.training_timesteps(scheduler, draws.t.to(device))
    a, s = objective.noise_levels(scheduler, t)  # [B, 1, 1, 1]
    prediction_type = objective.prediction_type_of(scheduler)
    no_text, no_image = draws.no_text.to(device), draws.no_image.to(device)
    text = _drop_text(batch.text, batch.null, no_text)
    c_I = batch.source.masked_fill(no_image.view(-1, 1, 1, 1), 0.0)
    prediction = net(diffusion.add_noise(batch.target, eps, a, s), t, c_I, text, v, batch.sizes)
    error = (prediction.e - diffusion.training_target(batch.target, eps, a, s, prediction_type)).square()  # [B, C, h, w]
    if min_snr_gamma is not None:
        error = diffusion.min_snr_weight(a, s, prediction_type, min_snr_gamma) * error
    if prediction.change_logits is None:
        return LossParts(error.mean((1, 2, 3)), None)
    changed = latent_change_mask(batch.source, batch.target, weights.min_latent_change)  # [B, 1, h, w]
    mask_error = F.binary_cross_entropy_with_logits(prediction.change_logits, changed, reduction="none")  # [B, 1, h, w]
    has_all_conditions = ~(no_text | no_image).view(-1, 1, 1, 1)
    cell_weights = balance_weights(changed, weights.mask_balance) * torch.where(changed > 0, 1.0, weights.background_weight)
    mask_weights = balance_weights(changed, weights.change_mask_balance)
    return LossParts(_weighted_mean(error, cell_weights), _weighted_mean(has_all_conditions * mask_error, mask_weights))


def latent_change_mask(source: Tensor, target: Tensor, min_change: float) -> Tensor:
    """1 where latents [B, C, h, w] differ by more than `min_change`, mean over channels, else 0; [B, 1, h, w]."""
    return ((source - target).abs().mean(1, keepdim=True) > min_change).to(target)


def balance_weights(changed: Tensor, balance: float) -> Tensor:
    """Change mask [B, 1, h, w] -> weight of every cell: (share of its region)^-balance.

    So a small edited object has enough weight against the unchanged image, and an unchanged object against a new background.
    """
    share = changed.mean((1, 2, 3), keepdim=True)
    min_share = 1 / changed[0].numel()
    return torch.where(changed > 0, share.clamp_min(min_share), (1 - share).clamp_min(min_share)) ** -balance


def _weighted_mean(error: Tensor, cell_weights: Tensor) -> Tensor:
    """Mean of [B, ., h, w] with weights [B, 1, h, w] -> [B]."""
    return (cell_weights * error).mean((1, 2, 3)) / cell_weights.mean((1, 2, 3))


def _drop_text(text: TextCondition, null: TextCondition, dropped: Tensor) -> TextCondition:
    hidden = torch.where(dropped.view(-1, 1, 1), null.hidden.to(text.hidden), text.hidden)
    if text.pooled is None or null.pooled is None:
        return TextCondition(hidden)
    return TextCondition(hidden, torch.where(dropped.view(-1, 1), null.pooled.to(text.pooled), text.pooled))
