"""Where an edit happens, asked of the base_model alone: DiffEdit's mask (Couairon et al., arXiv 2210.11427, section 3.2).

Noise the source's latents, predict the noise under both captions, and mark where the predictions differ: no detector, no
phrase that names an object. The paper's: half of the noise, 10 draws, a spatial difference averaged over them, extreme values
removed, rescaled to [0, 1], cut at 0.5. It does not say how extreme values are removed: diffusers' pipeline clamps at three
times the mean, and so do we. Ours: the result is the P of a soft mask like any other.

Nothing is converted for text_to_image that predict v or x_0, and no guidance is applied: at one z_t and t all of them are affine in
eps with one factor everywhere, guidance multiplies the difference by its strength, and rescaling takes both factors away.

Shapes: G sources, K contrasts, n noises, R rows of one forward, S steps, C latent channels, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from emuedit import config
from emuedit.synthesis.sampler import Sampler, some

EXTREME = 3.0
"""Differences beyond so many times their mean count as that (diffusers' `mask_thresholding_ratio`)."""


class NoiseDifference(config.Params):
    """How the base_model is asked."""

    strength: float = Field(gt=0, le=1)
    """How far the source is noised, as a share of the steps; the paper's 0.5."""
    n_noises: int = Field(ge=1)
    """Draws of noise to average over; the paper's 10."""
    threshold: float = Field(gt=0, lt=1)
    """Rescaled difference above which a place counts; the paper's 0.5."""


@dataclass(frozen=True)
class Contrast:
    """Two captions of one source."""

    source: int
    before: str
    after: str
    how: NoiseDifference


def found(
    sampler: Sampler, z_0: Tensor, seeds: Sequence[int], wanted: Sequence[Contrast], size: tuple[int, int], rows: int
) -> list[Tensor | str]:
    """The mask of every contrast, bool [H, W] of `size`, or "no_difference" where the base_model sees none.

    `z_0` float32 [G, C, h, w] latents of the sources, `seeds` of their noises, one a source: a mask depends on its own source,
    seed and contrast only. At most `rows` rows go through the U-Net together.
    """
    if len(seeds) != len(z_0):
        raise ValueError(f"want one seed a source, got {len(seeds)} for {len(z_0)}")
    masks: list[Tensor | str] = ["no_difference"] * len(wanted)
    groups: dict[tuple[int, str, NoiseDifference], list[int]] = {}
    for k, one in enumerate(wanted):
        if one.before != one.after:
            groups.setdefault((one.source, one.before, one.how), []).append(k)
    for (g, before, how), members in groups.items():
        captions = [before, *(wanted[k].after for k in members)]
        for k, D in zip(members, rescaled(_predictions(sampler, z_0[g], seeds[g], captions, how, rows)), strict=True):
            P = F.interpolate(D.gt(how.threshold)[None, None].float(), size)[0, 0] > 0  # every latent cell as a whole
            if P.any():
                masks[k] = P.cpu()
    return masks


def rescaled(e: Tensor) -> Tensor:
    """Predictions [1 + K, n, C, h, w], the source caption's first -> their differences from it, float32 [K, h, w] in [0, 1].

    D = min(d, 3 mean(d)) / (3 mean(d)), d the mean over noises and channels of |e_k - e_source|; 0 where nothing differs.
    """
    d = (e[1:] - e[:1]).abs().mean((1, 2))  # [K, h, w]
    most = EXTREME * d.mean((1, 2), keepdim=True)
    return torch.where(most > 0, d / most, 0).clamp(max=1)


def _predictions(sampler: Sampler, z_0: Tensor, seed: int, captions: Sequence[str], how: NoiseDifference, rows: int) -> Tensor:
    """What the U-Net says of one source [C, h, w] under every caption and noise, float32 [captions, n, C, h, w]."""
    scheduler = sampler.scheduler
    t = scheduler.timesteps[sampler.steps - max(1, round(how.strength * sampler.steps))]
    noise = torch.randn(how.n_noises, *z_0.shape, generator=torch.Generator().manual_seed(seed)).to(z_0)
    z_t = scheduler.add_noise(z_0.expand_as(noise), noise, t[None])
    text = sampler.base_model.encode_text(captions)
    pairs = torch.cartesian_prod(torch.arange(len(captions)), torch.arange(how.n_noises))  # caption by caption
    parts = [sampler.predict(scheduler, z_t[one[:, 1]], t, some(text, one[:, 0].tolist())) for one in pairs.split(rows)]
    return torch.cat(parts).unflatten(0, (len(captions), how.n_noises))
