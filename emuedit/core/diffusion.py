"""The forward diffusion process, training targets, and the clean latents implied by a prediction.

Noise levels are a pair (a, s): z_t = a z + s eps, with signal-to-noise ratio SNR = a^2 / s^2. Two families are supported:
variance preserving, a^2 + s^2 = 1, a = sqrt(alpha_bar) (Ho et al., arXiv 2006.11239), with the prediction types epsilon,
v_prediction and sample; and straight paths, a = 1 - sigma, s = sigma (Lipman et al., arXiv 2210.02747; Liu et al., arXiv
2209.03003), with the type flow.

Shapes: B samples, C latent channels, h and w the height and width of the latents. z, z_t, eps and e, the network's prediction,
are [B, C, h, w]; a and s are [B, 1, 1, 1], or [1, 1, 1, 1] for all samples.
"""

from typing import Literal

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
"""Prediction types: noise, v, clean latents, or velocity of the straight path from clean latents to noise."""
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample", "flow")


def add_noise(z: Tensor, eps: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """z_t = a z + s eps. Eq. 4 of Ho et al. (arXiv 2006.11239); Eq. 22 of Lipman et al. (arXiv 2210.02747) for straight paths."""
    return a * z + s * eps


def training_target(z: Tensor, eps: Tensor, a: Tensor, s: Tensor, prediction_type: PredictionType) -> Tensor:
    """The network's training target.

    epsilon: eps (Eq. 14 of Ho et al., arXiv 2006.11239). v_prediction: a eps - s z (Salimans & Ho, arXiv 2202.00512, section
    4). sample: z. flow: eps - z = dz_t / dsigma (Eq. 23 of Lipman et al., arXiv 2210.02747, with time from data to noise).
    Raises ValueError for another type.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return a * eps - s * z
    if prediction_type == "sample":
        return z
    if prediction_type == "flow":
        return eps - z
    raise ValueError(f"want a prediction type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")


def prediction_for_clean(z: Tensor, z_t: Tensor, a: Tensor, s: Tensor, prediction_type: PredictionType) -> Tensor:
    """The prediction at z_t that implies the clean latents z. Requires s > 0."""
    return training_target(z, (z_t - a * z) / s, a, s, prediction_type)


def clean_from_prediction(z_t: Tensor, e: Tensor, a: Tensor, s: Tensor, prediction_type: PredictionType) -> Tensor:
    """The clean latents implied by a prediction e at z_t: the inverse of `prediction_for_clean`.

    For epsilon, a must be above 0. v_prediction uses a^2 + s^2 = 1 and flow a + s = 1. Raises ValueError for another type.
    """
    if prediction_type == "epsilon":
        return (z_t - s * e) / a
    if prediction_type == "v_prediction":
        return a * z_t - s * e
    if prediction_type == "sample":
        return e
    if prediction_type == "flow":
        return z_t - s * e
    raise ValueError(f"want a prediction type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")


def min_snr_weight(a: Tensor, s: Tensor, prediction_type: PredictionType, gamma: float) -> Tensor:
    """Min-SNR-gamma weight of the squared error of a prediction, with the shape of a (Hang et al., arXiv 2303.09556).

    The paper weights the squared error of the clean latents by min(SNR, gamma) (section 3.4; gamma = 5). An error d of the
    prediction is an error |dz / de| d of the clean latents; by `clean_from_prediction`, |dz / de| is s / a for epsilon, s for
    v_prediction, 1 for sample and s for flow. So the weight is min(SNR, gamma) times 1 / SNR, 1 / (SNR + 1), 1 and s^2: the
    paper's for the first three; flow's is derived in the same way. It is 0 at SNR = 0, so a step with zero terminal SNR is not
    trained. For epsilon, a must be above 0. Raises ValueError for another type.
    """
    weight = (a / s).square().clamp_max(gamma)  # weight of the clean latents' error; gamma if s = 0
    if prediction_type == "epsilon":
        return weight * (s / a).square()
    if prediction_type in ("v_prediction", "flow"):
        return weight * s.square()
    if prediction_type == "sample":
        return weight
    raise ValueError(f"want a prediction type of {', '.join(PREDICTION_TYPES)}; got {prediction_type!r}")
