import pytest
import torch

from emuedit.core import diffusion


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_prediction_for_clean_is_the_prediction_of_a_perfect_network(prediction_type: str) -> None:
    z, eps = torch.randn(2, 3, 8, 8, 8)
    for value in (0.0 if prediction_type == "v_prediction" else 0.01, 0.5, 0.99):
        alpha_bar = torch.full((1, 1, 1, 1), value)
        z_t = diffusion.add_noise(z, eps, alpha_bar)
        prediction = diffusion.prediction_for_clean(z, z_t, alpha_bar, prediction_type)
        target = diffusion.training_target(z, eps, alpha_bar, prediction_type)
        torch.testing.assert_close(prediction, target, rtol=0, atol=1e-4)
