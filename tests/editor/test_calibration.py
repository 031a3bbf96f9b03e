import pytest
import torch

from emuedit.editor.calibration import calibration_error, fit_temperature, refusal_threshold


def test_the_temperature_that_scaled_the_logits_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    for scale in (0.5, 1.0, 4.0):
        assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.1)
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    correct = torch.tensor([True, True, True, False])
    assert calibration_error(confidence, correct) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert calibration_error(confidence, torch.tensor([False] * 4)) == pytest.approx(0.75)
    assert calibration_error(torch.tensor([1.0]), torch.tensor([True])) == 0.0
    assert calibration_error(torch.zeros(0), torch.zeros(0)) == 0.0


def test_the_threshold_refuses_no_more_than_the_share() -> None:
    support = torch.linspace(0, 1, 100)
    for share in (0.0, 0.02, 0.3):
        threshold = refusal_threshold(support, share)
        assert (support.double() < threshold).float().mean() == pytest.approx(share, abs=1e-6)
    assert refusal_threshold(support[:0], 0.02) == 0.0
