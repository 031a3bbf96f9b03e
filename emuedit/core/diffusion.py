"""The forward diffusion process and its training targets, eps or v.

Shapes: B samples, C latent channels, h and w the height and width of the latents.
alpha_bar is [B, 1, 1, 1], or [1, 1, 1, 1] for all samples.
"""

from torch import Tensor


def add_noise(z: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps; all [B, C, h, w]. Eq. 4 of Ho et al. (arXiv 2006.11239)."""
    return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps


def training_target(z: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The network's training target [B, C, h, w]: eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z.

    v is from Salimans & Ho (arXiv 2202.00512). Raises ValueError for another prediction type.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z
    raise ValueError(f"want a scheduler with prediction_type epsilon or v_prediction, got {prediction_type!r}")


def prediction_for_clean(z: Tensor, z_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """The prediction at z_t [B, C, h, w] whose estimate of the clean latents is z.

    This inverts `add_noise`; alpha_bar [1, 1, 1, 1] must be below 1.
    """
    eps = (z_t - alpha_bar.sqrt() * z) / (1 - alpha_bar).sqrt()
    return training_target(z, eps, alpha_bar, prediction_type)
