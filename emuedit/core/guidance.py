"""Classifier-free guidance with two conditions, an image c_I and a text c_T, under a task embedding v.

Shapes: B samples, C latent channels, h and w their height and width. `e(., ., v)` is a network's prediction (eps or v).
"""

import torch
from torch import Tensor


def two_conditions(e_null: Tensor, e_image: Tensor, e_full: Tensor, s_I: float, s_T: float) -> Tensor:
    """e(0,0,v) + s_I (e(I,0,v) - e(0,0,v)) + s_T (e(I,T,v) - e(I,0,v)); all [B, C, h, w].

    Eq. 3 of InstructPix2Pix (arXiv 2211.09800), with the task embedding in all three terms (Emu Edit, arXiv 2311.10089;
    its scales are s_I 1.5 and s_T 5.0). Scales of 1 give the fully conditioned prediction.
    """
    return e_null + s_I * (e_image - e_null) + s_T * (e_full - e_image)


def held(e: Tensor, e_source: Tensor, m: Tensor, hold: float) -> Tensor:
    """e where the picture changes, e_source, the prediction under which the source comes out, where it does not; [B, C, h, w].

    m [B, 1, h, w] in [0, 1] says where. Predictions are linear in the clean latents, so this lays the expected edit over the
    source by m (as Blended Latent Diffusion, arXiv 2206.02779, does with noised latents). hold 0 leaves e alone. Ours.
    """
    return torch.lerp(e, e_source, hold * (1 - m))


def rescaled(e: Tensor, e_full: Tensor, phi: float) -> Tensor:
    """Guidance pulled back to the spread of the conditioned prediction, [B, C, h, w]; phi in [0, 1], 0 leaves it alone.

    Eqs. 15 and 16 of Lin et al. (arXiv 2305.08891), which keep strong guidance from burning out at zero terminal SNR.
    """
    spread, wanted = (x.std(dim=(1, 2, 3), keepdim=True) for x in (e, e_full))
    return torch.lerp(e, e * (wanted / spread), phi)
