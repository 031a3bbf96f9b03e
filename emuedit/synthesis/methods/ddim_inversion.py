"""DDIM inversion: the latents that lead from noise to a given image (Song et al., arXiv 2010.02502, section 4.3).

Guided sampling from inverted noise does not return to the image. Null-text inversion (arXiv 2211.09794) optimises a
null text for every step of every image. Direct inversion (Ju et al., arXiv 2310.01506) resets the sources to the inverted path
after each step and does not change their edits. `PromptToPrompt.generate` uses the latter: it needs no optimisation, and the
sources are reproduced exactly.

Shapes: G sources, S steps, C latent channels, h and w the height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emuedit.models.denoising import Denoiser, memoryless_scheduler
from emuedit.models.text_to_image import TextToImageModel


def ddim_scheduler(base_model: TextToImageModel) -> Any:
    """DDIM with the noise levels of the base model, without clipping: its step is affine, hence invertible."""
    return memoryless_scheduler(base_model.scheduler, always_ddim=True)


def invert(
    base_model: TextToImageModel,
    z_0: Tensor,
    captions: Sequence[str],
    steps: int,
    iterations: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Invert latents z_0 [G, C, h, w] of captioned images: the path from noise to them, float32 [S + 1, G, C, h, w].

    path[i] is the latent before step i of DDIM, path[S] is z_0. A step z' = a z + b e(z, t) is inverted as
    z = (z' - b e(z, t)) / a. The network is evaluated at z', which is DDIM inversion, and then `iterations` - 1 times
    at the resulting z: a fixed-point iteration as in AIDI (Pan et al., arXiv 2309.04907). a and b are read off the
    scheduler's step, so any prediction type works. No guidance is applied. A `dtype` other than float32 runs the
    U-Net under autocast. Raises ValueError for unequal numbers of captions and images, and for fewer than one iteration.
    """
    if len(captions) != len(z_0):
        raise ValueError(f"want one caption per image, got {len(captions)} captions for {len(z_0)} images")
    if iterations < 1:
        raise ValueError(f"want at least one iteration per step, got {iterations}")
    denoiser, text = Denoiser(ddim_scheduler(base_model), steps, base_model.device), base_model.encode_text(captions)
    zeros, ones = torch.zeros(1, device=z_0.device), torch.ones(1, device=z_0.device)
    path = [z_0]
    for t in denoiser.timesteps.flip(0):
        a, b = denoiser.step(zeros, t, ones), denoiser.step(ones, t, zeros)
        z_next = path[-1]
        z = z_next
        for _ in range(iterations):
            with torch.no_grad(), torch.autocast(z_0.device.type, dtype, enabled=dtype != torch.float32):
                z = (z_next - b * base_model.predict(denoiser.scale(z, t), t, text)) / a
        path.append(z)
    return torch.stack(path[::-1])
