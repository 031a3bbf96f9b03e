import pytest
import torch
from torch import Tensor

from emuedit.core import diffusion
from emuedit.core.diffusion import PREDICTION_TYPES, PredictionType


def normal(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def levels(prediction_type: PredictionType, signal: float) -> tuple[Tensor, Tensor]:
    """(a, s) [1, 1, 1, 1] of the family that a type belongs to, by its signal a."""
    a = torch.full((1, 1, 1, 1), signal, dtype=torch.float64)
    return a, 1 - a if prediction_type == "flow" else (1 - a**2).sqrt()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_prediction_and_clean_latents_follow_from_each_other(prediction_type: PredictionType) -> None:
    z, eps = normal(2)
    for signal in (0.0, 0.01, 0.5, 0.99):
        if prediction_type == "epsilon" and signal == 0:
            continue  # no clean latents follow from it
        a, s = levels(prediction_type, signal)
        z_t = diffusion.add_noise(z, eps, a, s)
        target = diffusion.training_target(z, eps, a, s, prediction_type)
        torch.testing.assert_close(diffusion.prediction_for_clean(z, z_t, a, s, prediction_type), target)
        torch.testing.assert_close(diffusion.clean_from_prediction(z_t, target, a, s, prediction_type), z)


def test_the_targets_are_those_of_the_papers() -> None:
    """At zero terminal SNR v is -z; the velocity of a straight path is its derivative by sigma."""
    z, eps = normal(2)
    zero, unit = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert torch.equal(diffusion.add_noise(z, eps, zero, unit), eps)
    assert torch.equal(diffusion.training_target(z, eps, zero, unit, "v_prediction"), -z)
    sigma = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    z_t = diffusion.add_noise(z, eps, 1 - sigma, sigma)
    (derivative,) = torch.autograd.grad(z_t[0, 0, 0, 0], sigma)
    velocity = diffusion.training_target(z, eps, 1 - sigma, sigma, "flow")
    torch.testing.assert_close(velocity[0, 0, 0, 0], derivative.squeeze())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_the_error_of_the_clean_latents(prediction_type: PredictionType) -> None:
    """The weighted error of a prediction is min(SNR, gamma) times the error of the clean latents that it implies."""
    z, eps, mistake = normal(3)
    for signal in (0.05, 0.5, 0.9, 0.999):
        a, s = levels(prediction_type, signal)
        z_t = diffusion.add_noise(z, eps, a, s)
        target = diffusion.training_target(z, eps, a, s, prediction_type)
        clean = diffusion.clean_from_prediction(z_t, target + 0.1 * mistake, a, s, prediction_type)
        got = diffusion.min_snr_weight(a, s, prediction_type, 5.0) * (0.1 * mistake).square()
        torch.testing.assert_close(got, min(float(a**2 / s**2), 5.0) * (clean - z).square())


def test_min_snr_weights_are_those_of_the_paper() -> None:
    """Variance preserving, SNR = a^2 / (1 - a^2): min(SNR, 5) over SNR for eps, over SNR + 1 for v; 1 is the most for eps."""
    a = torch.tensor([0.1, 0.5, 0.9, 0.99]).view(-1, 1, 1, 1)
    s = (1 - a**2).sqrt()
    snr = (a / s) ** 2
    torch.testing.assert_close(diffusion.min_snr_weight(a, s, "sample", 5.0), snr.clamp_max(5))
    torch.testing.assert_close(diffusion.min_snr_weight(a, s, "epsilon", 5.0), (5 / snr).clamp_max(1))
    torch.testing.assert_close(diffusion.min_snr_weight(a, s, "v_prediction", 5.0), snr.clamp_max(5) / (snr + 1))


def test_min_snr_weights_are_finite_without_noise_and_without_signal() -> None:
    zero, unit = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for prediction_type in PREDICTION_TYPES:
        without_noise = diffusion.min_snr_weight(unit, zero, prediction_type, 5.0).item()
        assert without_noise == (5.0 if prediction_type == "sample" else 0.0)
        if prediction_type != "epsilon":
            assert diffusion.min_snr_weight(zero, unit, prediction_type, 5.0).item() == 0.0


def test_another_kind_is_an_error() -> None:
    a, s = levels("epsilon", 0.5)
    (z,) = normal(1)
    for call in (
        lambda: diffusion.training_target(z, z, a, s, "score"),  # type: ignore[arg-type]
        lambda: diffusion.clean_from_prediction(z, z, a, s, "score"),  # type: ignore[arg-type]
        lambda: diffusion.min_snr_weight(a, s, "score", 5.0),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="epsilon, v_prediction, sample, flow; got 'score'"):
            call()
