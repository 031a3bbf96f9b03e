"""LocalBlend of Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): change the latents only near the changed words.

The details (3 x 3 max-pool, a threshold relative to the maximum, the maps as edited) follow the authors' code.

Shapes: N tokens of a layer, L tokens of a caption, C latent channels, h and w the height and width of the latents.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from emuedit import config
from emuedit.core import attention_mixing


class LocalBlend(config.Params):
    """LocalBlend of Prompt-to-Prompt: keep the source's latents where attention to changed words is low."""

    n_tokens: int = Field(ge=1)
    """Layers with this many tokens are used; authors: 256 for latents of 64 x 64."""
    threshold: float = Field(0.3, ge=0, lt=1)
    """Threshold on a map divided by its maximum; authors: 0.3."""
    start: float = Field(0.2, ge=0, le=1)
    """Fraction of the steps before the first blend; authors: 0.2."""


def blend_latents(z: Tensor, z_source: Tensor, changed: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Tensor:
    """M z + (1 - M) z_source, [C, h, w]. M is 1 where the attention to changed words of either caption is high, else 0.

    `changed`: for each caption its mean cross-attention maps [N, L], and a mask [L] that is 1 at the tokens of its
    changed words. A caption without changed words adds nothing to M.
    """
    size = (z.shape[-2], z.shape[-1])
    M = torch.zeros(size, dtype=torch.bool, device=z.device)
    for maps, tokens in changed:
        if tokens.any():
            M |= attention_region(maps @ tokens.to(maps), size, threshold)
    return torch.where(M, z, z_source)


def attention_region(P: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """bool [h, w]: where a map P [N], max-pooled over 3 x 3 cells and resized, exceeds threshold x maximum."""
    grid = P.reshape(1, 1, *attention_mixing.layer_grid(len(P), *size)).float()
    grid = F.interpolate(F.max_pool2d(grid, 3, stride=1, padding=1), size)[0, 0]
    return grid / grid.amax() > threshold
