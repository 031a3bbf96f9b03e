import pytest
import torch

from emuedit.core import diffusion


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_implied_prediction_is_what_a_perfect_network_says(kind: str) -> None:
    z, eps = torch.randn(2, 3, 8, 8, 8)
    for a in (0.0 if kind == "v_prediction" else 0.01, 0.5, 0.99):
        alpha_bar = torch.full((1, 1, 1, 1), a)
        z_t = diffusion.noised(z, eps, alpha_bar)
        torch.testing.assert_close(
            diffusion.implied(z, z_t, alpha_bar, kind), diffusion.wanted(z, eps, alpha_bar, kind), rtol=0, atol=1e-4
        )
