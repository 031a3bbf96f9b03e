"""A batch, and networks that predict it exactly or with a known error, for tests of the loss."""

from typing import Any

import torch
from torch import Tensor

from emuedit.core import diffusion
from emuedit.editor.unet import Prediction
from emuedit.models import objective
from emuedit.models.text_to_image import TextCondition
from emuedit.training import loss
from emuedit.training.batches.batch import Batch
from emuedit.training.loss import LossWeights, NoiseDraws

WEIGHTS = LossWeights(
    timestep_power=(0.5, 1.0), mask_balance=1.0, background_weight=0.3, change_loss_weight=0.5, change_mask_balance=0.5
)
NONE_DROPPED = torch.zeros(4, dtype=torch.bool)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch() -> Batch:
    """Four samples that change in 2 x 2 of 8 x 8 cells."""
    source = normal(4, 8, 8, 8, seed=1)
    target = source.clone()
    target[:, :, 2:4, 2:4] += 3
    text, null = TextCondition(normal(4, 5, 16, seed=2)), TextCondition(torch.zeros(1, 5, 16))
    return Batch(source, target, text, null, torch.arange(4), tuple("abcd"), ("make it red",) * 4)


def draw_at(no_text: Tensor = NONE_DROPPED, no_image: Tensor = NONE_DROPPED) -> NoiseDraws:
    """Draws for `batch` at fixed timesteps."""
    return NoiseDraws(torch.tensor([10, 20, 30, 40]), normal(4, 8, 8, 8, seed=3), no_text, no_image)


class PerfectNetwork(torch.nn.Module):
    """Predicts the exact target and the exact change mask of `batch`, and keeps the arguments of the last call."""

    def __init__(self, target: Tensor, scheduler: Any, has_head: bool = True) -> None:
        super().__init__()
        self.target, self.scheduler, self.has_head = target, scheduler, has_head
        self.change_logits = torch.full_like(target[:, :1], -99.0)
        self.change_logits[:, :, 2:4, 2:4] = 99

    def forward(
        self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor, sizes: Tensor | None = None
    ) -> Prediction:
        self.conditions, self.t, self.sizes = (c_I, c_T), t, sizes
        levels, prediction_type = objective.noise_levels(self.scheduler, t), objective.prediction_type_of(self.scheduler)
        e = diffusion.prediction_for_clean(self.target, z_t, *levels, prediction_type)
        return Prediction(e, self.change_logits if self.has_head else None)


class WrongNetwork(PerfectNetwork):
    """Its prediction is wrong by 1 in every unchanged cell."""

    def forward(
        self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor, sizes: Tensor | None = None
    ) -> Prediction:
        e, change_logits = super().forward(z_t, t, c_I, c_T, v, sizes)
        return Prediction(e + (self.change_logits < 0), change_logits)


def losses_of(net: Any, scheduler: Any, batch: Batch, draws: NoiseDraws, weights: LossWeights) -> Tensor:
    return loss.loss_parts(net, scheduler, batch, draws, torch.zeros(4, 6), weights).total(weights)
