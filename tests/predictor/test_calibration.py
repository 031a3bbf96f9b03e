import pytest
import torch

from emuedit.predictor.calibration import MAX_WEIGHT, MIN_WEIGHT, calibration_error, fit_weights, measure, refusal_threshold


def test_the_temperature_that_scaled_the_logits_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten()
    for scale in (0.5, 1.0, 4.0):
        (weight,) = fit_weights(scale * logits[None], labels)
        assert 1 / weight == pytest.approx(scale, rel=0.1)
    assert fit_weights(logits[None, :0], labels[:0]) == (1.0,)


def test_the_weights_of_a_product_of_experts_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 8000, 5, generator=generator)
    labels = torch.multinomial((0.3 * logits[0] + 1.2 * logits[1]).softmax(-1), 1, generator=generator).flatten()
    assert fit_weights(logits, labels) == pytest.approx((0.3, 1.2), rel=0.15)
    assert fit_weights(logits[:, :0], labels[:0]) == (0.5, 0.5)


def test_an_expert_that_is_always_wrong_gets_the_least_weight() -> None:
    labels = torch.randint(5, (2000,), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(labels, 5).float()
    assert fit_weights(torch.stack([right, -right]), labels) == pytest.approx((MAX_WEIGHT, MIN_WEIGHT))


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


def test_accuracy_is_measured_per_task() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    metrics = measure(p, torch.tensor([0, 0, 0, 1]), ("remove", "sketch"))
    assert metrics["accuracy"] == 0.75
    assert metrics["tasks"] == {"remove": pytest.approx(2 / 3), "sketch": 1.0}
    assert metrics["confusion"] == {"remove": {"remove": 2, "sketch": 1}, "sketch": {"sketch": 1}}
    assert metrics["calibration_error"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
