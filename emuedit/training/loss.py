"""The objective: predict eps or v of a noised target latent under picture, instruction and task.

Shapes: B samples, C latent channels, h and w latent sizes. Everything random is in `Draws`, made from (seed, step) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from emuedit import config
from emuedit.core import diffusion
from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextCondition
from emuedit.runtime import generator


class Dropout(config.Params):
    """How often a condition is left out in training, so that guidance has something to compare with; shares of samples."""

    text: float
    """The instruction alone gives way to the null text."""
    image: float
    """The picture alone gives way to zeros."""
    both: float
    """Both at once."""


NEVER = Dropout(text=0.0, image=0.0, both=0.0)
"""All conditions, always."""


class Weights(config.Params):
    """What counts how much in the loss. All of it ours."""

    late_times: tuple[float, float]
    """Times are T u^x, u uniform, x from the first to the second: 1 is uniform, below 1 there are more of the noisy times."""
    rarity: float = Field(ge=0, le=1)
    """Errors where it changes and where it stays count (their share)^-rarity: 0 all cells alike, 1 both halves alike."""
    kept: float = Field(gt=0)
    """An error where it stays counts this beside one where it changes: an editor is held on the picture there."""
    change: float = Field(ge=0)
    """Saying where the picture changes counts this beside painting it."""
    change_rarity: float = Field(ge=0, le=1)
    """As `rarity`, of saying where."""

    @field_validator("late_times")
    @classmethod
    def _positive(cls, some: tuple[float, float]) -> tuple[float, float]:
        if min(some) <= 0:
            raise ValueError(f"want two exponents above 0, got {list(some)}")
        return some

    def late(self, done: float) -> float:
        """The exponent of times when this share of the training is done."""
        first, last = self.late_times
        return first + (last - first) * done


PLAIN = Weights(late_times=(1.0, 1.0), rarity=0.0, kept=1.0, change=0.0, change_rarity=0.0)
"""Nothing counts more than anything else, and painting alone."""


@dataclass(frozen=True)
class Batch:
    """What a step learns from."""

    source: Tensor  # E(c_I), [B, C, h, w]
    target: Tensor  # E(x), [B, C, h, w]
    text: TextCondition  # of the instructions
    null: TextCondition  # of no instruction, one row
    tasks: Tensor  # rows of the task table, int64 [B]
    ids: tuple[str, ...]  # of the pairs
    said: tuple[str, ...]  # the instructions in words

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device) -> Batch:
        """The same on a device; on a GPU laid out channels last."""
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        source, target = (x.to(device, memory_format=layout) for x in (self.source, self.target))
        text, null = (
            TextCondition(c.hidden.to(device), None if c.pooled is None else c.pooled.to(device)) for c in (self.text, self.null)
        )
        return Batch(source, target, text, null, self.tasks.to(device), self.ids, self.said)


@dataclass(frozen=True)
class Draws:
    """The chance in one step."""

    t: Tensor  # int64 [B]
    eps: Tensor  # [B, C, h, w]
    no_text: Tensor  # bool [B]
    no_image: Tensor  # bool [B]

    def of(self, some: slice) -> Draws:
        """Those of some of the samples."""
        return Draws(self.t[some], self.eps[some], self.no_text[some], self.no_image[some])


def draw(shape: tuple[int, ...], n_times: int, dropout: Dropout, late_times: float, *keys: str | int) -> Draws:
    """Draws on the CPU for a batch of latents of `shape`, from the keys alone. One time in every stratum of the batch."""
    chance = generator("editor", *keys)
    u = (torch.randperm(shape[0], generator=chance) + torch.rand(shape[0], generator=chance)) / shape[0]
    t = (n_times * u**late_times).long().clamp_max(n_times - 1)
    eps = torch.randn(shape, generator=chance)
    fate = torch.rand(shape[0], generator=chance)
    no_text = fate < dropout.text + dropout.both  # [text | both | image | nothing]
    no_image = (fate >= dropout.text) & (fate < dropout.text + dropout.both + dropout.image)
    return Draws(t, eps, no_text, no_image)


def per_sample(net: EditorUNet, scheduler: Any, batch: Batch, draws: Draws, v: Tensor, weights: Weights) -> Tensor:
    """Weighted mean squared error of each sample, [B] (Eq. 2 of Emu Edit), and what saying where it changes adds to it.

    The latter is the cross-entropy of where source and target differ, for samples that were told all conditions. v [B, D_v] is
    never dropped: guidance keeps it. The noise schedule, zero terminal SNR included, is the scheduler's.
    """
    device = batch.target.device
    t, eps = draws.t.to(device), draws.eps.to(batch.target)
    alpha_bar = scheduler.alphas_cumprod.to(device)[t].view(-1, 1, 1, 1)
    no_text, no_image = draws.no_text.to(device), draws.no_image.to(device)
    text = _dropped(batch.text, batch.null, no_text)
    c_I = batch.source.masked_fill(no_image.view(-1, 1, 1, 1), 0.0)
    said = net(diffusion.noised(batch.target, eps, alpha_bar), t, c_I, text, v)
    changed = changes(batch.source, batch.target)  # [B, 1, h, w]
    error = (said.e - diffusion.wanted(batch.target, eps, alpha_bar, scheduler.config.prediction_type)).square()  # [B, C, h, w]
    lost = F.binary_cross_entropy_with_logits(said.change, changed, reduction="none")  # [B, 1, h, w]
    told = ~(no_text | no_image).view(-1, 1, 1, 1)
    cells = weighed(changed, weights.rarity) * torch.where(changed > 0, 1.0, weights.kept)
    return _mean(error, cells) + weights.change * _mean(told * lost, weighed(changed, weights.change_rarity))


def _mean(error: Tensor, cells: Tensor) -> Tensor:
    """[B, ., h, w] under weights [B, 1, h, w] -> [B]."""
    return (cells * error).mean((1, 2, 3)) / cells.mean((1, 2, 3))


def changes(source: Tensor, target: Tensor, least: float = 0.15) -> Tensor:
    """1 where the latents, whose spread is about 1, differ by more than `least`, mean over channels; [B, 1, h, w]. Ours."""
    return ((source - target).abs().mean(1, keepdim=True) > least).to(target)


def weighed(changed: Tensor, rarity: float) -> Tensor:
    """Where cells change [B, 1, h, w] -> the weight of every cell: share^-rarity of the changed ones, of the kept ones likewise.

    So the small object of an edit counts beside the picture that stays, and the object that stays beside a new background. Ours.
    """
    share = changed.mean((1, 2, 3), keepdim=True)
    least = 1 / changed[0].numel()
    return torch.where(changed > 0, share.clamp_min(least), (1 - share).clamp_min(least)) ** -rarity


def _dropped(text: TextCondition, null: TextCondition, where: Tensor) -> TextCondition:
    hidden = torch.where(where.view(-1, 1, 1), null.hidden.to(text.hidden), text.hidden)
    if text.pooled is None or null.pooled is None:
        return TextCondition(hidden)
    return TextCondition(hidden, torch.where(where.view(-1, 1), null.pooled.to(text.pooled), text.pooled))
