"""A picture's own noise: DDIM inversion (Song et al., arXiv 2010.02502, section 4.3), and how a source finds back along it.

Guided sampling from inverted noise does not come back to the picture. Null-text inversion (arXiv 2211.09794) learns a text for
every step of every picture; direct inversion (Ju et al., arXiv 2310.01506) puts the sources back on the inverted path after
each step and leaves their edits alone. The latter is built here: nothing is learnt, and sources come back exactly.

Shapes: G sources, S steps, C latent channels, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emuedit.models import model_sources
from emuedit.models.text_to_image import TextToImageModel


def ddim(base_model: TextToImageModel, steps: int) -> Any:
    """DDIM on the base_model's noise levels, ready to step, without clipping: its step is affine, so it can be taken back."""
    kind = model_sources.library("diffusers").DDIMScheduler
    scheduler = kind.from_config(base_model.scheduler.config, clip_sample=False, thresholding=False)
    scheduler.set_timesteps(steps, device=base_model.device)
    return scheduler


def path(
    base_model: TextToImageModel,
    z_0: Tensor,
    captions: Sequence[str],
    steps: int,
    iterations: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Latents [G, C, h, w] of pictures and their captions -> the way to them from noise, float32 [S + 1, G, C, h, w].

    path[i] stands before step i of `ddim`, path[S] is z_0. A step z' = a z + b e(z, t) is taken back as z = (z' - b e(z, t)) / a;
    the network is asked at z', which is DDIM inversion, then `iterations` - 1 times at the z it gave (a fixed point: AIDI,
    Pan et al., arXiv 2309.04907). Whatever the network predicts, a and b are the scheduler's. Without guidance.
    """
    if len(captions) != len(z_0):
        raise ValueError(f"want one caption a picture, got {len(captions)} for {len(z_0)}")
    if iterations < 1:
        raise ValueError(f"want at least one iteration a step, got {iterations}")
    scheduler, text = ddim(base_model, steps), base_model.encode_text(captions)
    z = [z_0]
    for t in scheduler.timesteps.flip(0):
        zero, one = torch.zeros(1, device=z_0.device), torch.ones(1, device=z_0.device)
        a, b = (scheduler.step(e, t, at, return_dict=False)[0] for e, at in ((zero, one), (one, zero)))
        z_t = z[-1]
        for _ in range(iterations):
            with torch.no_grad(), torch.autocast(z_0.device.type, dtype, enabled=dtype != torch.float32):
                z_t = (z[-1] - b * base_model.predict(scheduler.scale_model_input(z_t, t), t, text)) / a
        z.append(z_t)
    return torch.stack(z[::-1])
