"""Masks from only the base model: DiffEdit (Couairon et al., arXiv 2210.11427, section 3.2).

Noise the source's latents, predict the noise under two captions, and mark where the predictions differ. This needs no
detector and no phrase that names an object. As in the paper: noise at half of the steps, the absolute difference
averaged over 10 noises, extreme values removed, the result rescaled to [0, 1] and thresholded at 0.5. The paper does
not say how extreme values are removed; like the pipeline of diffusers, we clamp at three times the mean. Using the
result as the precise mask P of a soft mask is ours.

Predictions of v or x_0 are not converted to eps, and no guidance is applied. At one z_t and t all of them are affine in
eps with one common factor, guidance multiplies the difference by its scale, and the rescaling removes both factors.

Shapes: G sources, K contrasts, n noises, S steps, C latent channels, h and w the height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from emuedit import config
from emuedit.synthesis.rejection import Rejected
from emuedit.synthesis.sampler import Sampler

CLAMP_FACTOR = 3.0
"""Differences are clamped at this multiple of their mean (`mask_thresholding_ratio` in diffusers)."""


class NoiseDifference(config.Params):
    """Params of DiffEdit's mask."""

    strength: float = Field(gt=0, le=1)
    """Noise level of the source, as a fraction of the steps; paper: 0.5."""
    n_noises: int = Field(ge=1)
    """Number of noises to average over; paper: 10."""
    threshold: float = Field(gt=0, lt=1)
    """Rescaled difference above which a latent cell belongs to the mask; paper: 0.5."""


@dataclass(frozen=True)
class CaptionContrast:
    """Two captions of one source, whose predictions are compared."""

    source: int
    before: str  # the caption of the source
    after: str  # the caption of the edited image
    params: NoiseDifference


def difference_masks(
    sampler: Sampler, z_0: Tensor, seeds: Sequence[int], contrasts: Sequence[CaptionContrast], size: tuple[int, int], rows: int
) -> list[Tensor | Rejected]:
    """Compute the mask of every contrast: bool [H, W] of `size`, or Rejected if the predictions do not differ.

    `z_0` float32 [G, C, h, w]: latents of the sources; `seeds`: one noise seed per source. A mask depends only on its source,
    seed and contrast. At most `rows` rows are in one forward pass of the U-Net. Raises ValueError for unequal numbers of seeds
    and sources.
    """
    if len(seeds) != len(z_0):
        raise ValueError(f"want one seed per source, got {len(seeds)} seeds for {len(z_0)} sources")
    masks: list[Tensor | Rejected] = [Rejected("no_difference")] * len(contrasts)
    groups: dict[tuple[int, str, NoiseDifference], list[int]] = {}  # contrasts that share the source's predictions
    for k, contrast in enumerate(contrasts):
        if contrast.before != contrast.after:
            groups.setdefault((contrast.source, contrast.before, contrast.params), []).append(k)
    for (source, before, params), members in groups.items():
        captions = [before, *(contrasts[k].after for k in members)]
        e = _predict(sampler, z_0[source], seeds[source], captions, params, rows)
        for k, D in zip(members, rescale_differences(e), strict=True):
            P = F.interpolate(D.gt(params.threshold)[None, None].float(), size)[0, 0] > 0  # nearest: cells are not split
            if P.any():
                masks[k] = P.cpu()
    return masks


def rescale_differences(e: Tensor) -> Tensor:
    """Predictions [1 + K, n, C, h, w], the source caption's first -> rescaled differences, float32 [K, h, w] in [0, 1].

    D = min(d, 3 mean(d)) / (3 mean(d)), with d the mean over noises and channels of |e_k - e_source|. D is 0 if no
    prediction differs.
    """
    d = (e[1:] - e[:1]).abs().mean((1, 2))  # [K, h, w]
    clamp = CLAMP_FACTOR * d.mean((1, 2), keepdim=True)
    return torch.where(clamp > 0, d / clamp, 0).clamp(max=1)


def _predict(sampler: Sampler, z_0: Tensor, seed: int, captions: Sequence[str], params: NoiseDifference, rows: int) -> Tensor:
    """Predictions for one source [C, h, w] with every caption and noise: float32 [captions, n, C, h, w]."""
    denoiser = sampler.denoiser()
    n_steps = max(1, round(params.strength * sampler.steps))
    t = denoiser.timesteps[sampler.steps - n_steps]
    noise = torch.randn(params.n_noises, *z_0.shape, generator=torch.Generator().manual_seed(seed)).to(z_0)
    z_t = denoiser.add_noise(z_0.expand_as(noise), noise, t)  # [n, C, h, w]
    text = sampler.base_model.encode_text(captions)
    pairs = torch.cartesian_prod(torch.arange(len(captions)), torch.arange(params.n_noises))  # (caption, noise)
    parts = [sampler.predict(denoiser, z_t[chunk[:, 1]], t, text.take(chunk[:, 0])) for chunk in pairs.split(rows)]
    return torch.cat(parts).unflatten(0, (len(captions), params.n_noises))
