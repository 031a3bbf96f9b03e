"""The forward process and what a network may predict of it, eps or v.

Shapes: B samples, C latent channels, h and w their height and width. alpha_bar is [B, 1, 1, 1], or [1, 1, 1, 1] for all.
"""

from torch import Tensor


def noised(z: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps (Eq. 4, Ho et al., arXiv 2006.11239)."""
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps


def wanted(z: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """What the network is to say: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z (Salimans & Ho, arXiv 2202.00512)."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z
    raise ValueError(f"want a scheduler with prediction_type epsilon or v_prediction, got {prediction_type!r}")


def implied(z: Tensor, z_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The prediction of z_t [B, C, h, w] under which its clean latents are z; alpha_bar [1, 1, 1, 1] is below 1."""
    return wanted(z, (z_t - alpha_bar.sqrt() * z) / (1 - alpha_bar).sqrt(), alpha_bar, prediction_type)
