"""Classifier-free guidance with two conditions, an image c_I and a text c_T, under a task embedding v.

Shapes: B samples, C latent channels, h and w their height and width. `e(., ., v)` is a network's prediction (eps or v).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def two_conditions(e_null: Tensor, e_image: Tensor, e_full: Tensor, s_I: float, s_T: float | Tensor) -> Tensor:
    """e(0,0,v) + s_I (e(I,0,v) - e(0,0,v)) + s_T (e(I,T,v) - e(I,0,v)); all [B, C, h, w], s_T a number or [B, 1, h, w].

    Eq. 3 of InstructPix2Pix (arXiv 2211.09800), with the task embedding in all three terms (Emu Edit, arXiv 2311.10089;
    its scales are s_I 1.5 and s_T 5.0). Scales of 1 give the fully conditioned prediction.
    """
    return e_null + s_I * (e_image - e_null) + s_T * (e_full - e_image)


def relevance(e_image: Tensor, e_full: Tensor) -> Tensor:
    """Where the text matters, [B, 1, h, w] in [0, 1]: |e(I,T,v) - e(I,0,v)|, mean over channels, over its maximum.

    The relevance map of Watch Your Steps (Mirzaei et al., arXiv 2308.08947), of every step and smoothed over 3 x 3 cells (ours).
    """
    r = F.avg_pool2d((e_full - e_image).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    return r / r.amax((2, 3), keepdim=True).clamp_min(torch.finfo(r.dtype).tiny)


def focused(s_T: float, r: Tensor, focus: float) -> Tensor:
    """1 + (s_T - 1) ((1 - focus) + focus r): with a focus of 1 all of s_T where the text matters most, 1 where it does not; ours.

    Strong guidance everywhere also changes what the text does not speak of. A focus of 0 is s_T everywhere.
    """
    return 1 + (s_T - 1) * (1 - focus + focus * r)


def rescaled(e: Tensor, e_full: Tensor, phi: float) -> Tensor:
    """Guidance pulled back to the spread of the conditioned prediction, [B, C, h, w]; phi in [0, 1], 0 leaves it alone.

    Eqs. 15 and 16 of Lin et al. (arXiv 2305.08891), which keep strong guidance from burning out at zero terminal SNR.
    """
    spread, wanted = (x.std(dim=(1, 2, 3), keepdim=True) for x in (e, e_full))
    return torch.lerp(e, e * (wanted / spread), phi)
