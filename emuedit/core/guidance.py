"""Classifier-free guidance by a text, or by an image c_I and a text c_T with a task embedding v.

Shapes: B samples, C latent channels, h and w the height and width of the latents.
`e(., ., v)` is a network's prediction, of any `diffusion.PredictionType`; all are linear in the clean latents.
"""

from typing import Literal

import torch
from torch import Tensor

GuidanceTerm = Literal["null", "image", "full"]
"""An evaluation of the network: without conditions e(0,0,v), with only the image e(I,0,v), or with both e(I,T,v)."""


def classifier_free(e_null: Tensor, e_text: Tensor, scale: Tensor | float) -> Tensor:
    """e(0) + scale (e(T) - e(0)); all [B, C, h, w], scale a number or [B, 1, 1, 1].

    Eq. 6 of Ho and Salimans (arXiv 2207.12598) with scale = 1 + w. Scale 1 gives the conditional prediction.
    """
    return e_null + scale * (e_text - e_null)


def guided_steps(interval: tuple[float, float], steps: int) -> range:
    """The steps in which guidance is applied, for an interval of fractions of the steps in [0, 1].

    steps: the scheduler's actual number of timesteps, which may exceed the requested one (PNDM: by one).
    Limiting guidance to an interval is from Kynkäänniemi et al. (arXiv 2404.07724), who use noise levels.
    """
    first, last = (round(share * steps) for share in interval)
    return range(first, last)


def terms_of(s_I: float, s_T: float) -> tuple[GuidanceTerm, ...]:
    """The terms of `two_conditions` with nonzero weight: three in general, two if s_I is 1 or s_T, one if both are 1."""
    weights: dict[GuidanceTerm, float] = {"null": 1 - s_I, "image": s_I - s_T}
    return (*(term for term, weight in weights.items() if weight), "full")


def two_conditions(e_null: Tensor | None, e_image: Tensor | None, e_full: Tensor, s_I: float, s_T: float) -> Tensor:
    """e(0,0,v) + s_I (e(I,0,v) - e(0,0,v)) + s_T (e(I,T,v) - e(I,0,v)); all [B, C, h, w].

    Eq. 3 of InstructPix2Pix (arXiv 2211.09800), with the task embedding in all three terms (Emu Edit, arXiv 2311.10089;
    its scales are s_I = 1.5 and s_T = 5.0). Scales of 1 give the fully conditioned prediction. Terms that `terms_of` omits,
    with zero weight, are None.
    """
    if e_image is None:
        return e_full if e_null is None else classifier_free(e_null, e_full, s_T)
    if e_null is None:
        return classifier_free(e_image, e_full, s_T)
    return e_null + s_I * (e_image - e_null) + s_T * (e_full - e_image)


def blend_with_source(e: Tensor, e_source: Tensor, change_mask: Tensor, preserve: float) -> Tensor:
    """Blend the prediction e with e_source outside the change mask; [B, C, h, w].

    e_source is the prediction whose clean latents are the source (`diffusion.prediction_for_clean`). change_mask [B, 1,
    h, w] in [0, 1] is 1 where the image changes. preserve in [0, 1]: 0 returns e, 1 replaces it fully where the mask is 0.
    Predictions are linear in the clean latents, so this blends edit and source by the mask, like Blended Latent Diffusion
    (arXiv 2206.02779) does with noised latents. The formula is ours.
    """
    return torch.lerp(e, e_source, preserve * (1 - change_mask))


def rescale(e: Tensor, e_full: Tensor, guidance_rescale: float) -> Tensor:
    """Rescale guidance to the standard deviation of the fully conditioned prediction, [B, C, h, w].

    Eqs. 15 and 16 of Lin et al. (arXiv 2305.08891), against over-exposure by strong guidance at zero terminal SNR.
    guidance_rescale, the paper's phi, is in [0, 1]; 0 returns e.
    """
    std, std_full = (prediction.std(dim=(1, 2, 3), keepdim=True) for prediction in (e, e_full))
    return torch.lerp(e, e * (std_full / std), guidance_rescale)
