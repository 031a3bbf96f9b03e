import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from emuedit.core import diffusion
from emuedit.editor import checkpoint
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.training import loss
from emuedit.training.batch import Batch
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED, ConditionDropout, LossWeights, NoiseDraws

WEIGHTS = LossWeights(
    timestep_power=(0.5, 1.0), mask_balance=1.0, background_weight=0.3, change_loss_weight=0.5, change_mask_balance=0.5
)
NO_TEXT, NO_IMAGE = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, False])
NONE_DROPPED = torch.zeros(4, dtype=torch.bool)
MakeBaseModel = Callable[[str], TextToImageModel]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> Batch:
    """Four samples that change in 2 x 2 of 8 x 8 cells."""
    source = normal(4, 8, 8, 8, seed=1)
    target = source.clone()
    target[:, :, 2:4, 2:4] += 3
    text, null = TextCondition(normal(4, 5, 16, seed=2)), TextCondition(torch.zeros(1, 5, 16))
    return Batch(source, target, text, null, torch.arange(4), tuple("abcd"), ("make it red",) * 4)


@pytest.fixture
def scheduler() -> Any:
    """A schedule of 100 timesteps for eps-prediction."""
    config = SimpleNamespace(prediction_type="epsilon")
    return SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 100), config=config)


def draw_at(no_text: Tensor = NONE_DROPPED, no_image: Tensor = NONE_DROPPED) -> NoiseDraws:
    """Draws for `batch` at fixed timesteps."""
    return NoiseDraws(torch.tensor([10, 20, 30, 40]), normal(4, 8, 8, 8, seed=3), no_text, no_image)


class PerfectNetwork(torch.nn.Module):
    """Predicts the exact target and the exact change mask of `batch`, and keeps the conditions of the last call."""

    def __init__(self, target: Tensor, scheduler: Any) -> None:
        super().__init__()
        self.target, self.alpha_bar = target, scheduler.alphas_cumprod
        self.prediction_type = scheduler.config.prediction_type
        self.change_logits = torch.full_like(target[:, :1], -99.0)
        self.change_logits[:, :, 2:4, 2:4] = 99

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        self.conditions = c_I, c_T
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        eps = (z_t - a.sqrt() * self.target) / (1 - a).sqrt()
        e = eps if self.prediction_type == "epsilon" else (a.sqrt() * z_t - self.target) / (1 - a).sqrt()
        return Prediction(e, self.change_logits)


def losses_of(net: Any, scheduler: Any, batch: Batch, draws: NoiseDraws, weights: LossWeights) -> Tensor:
    return loss.loss_per_sample(net, scheduler, batch, draws, torch.zeros(4, 6), weights)


@pytest.mark.parametrize("kind", ["toy", "sd15"])
def test_a_perfect_network_has_no_loss(kind: str, make_base_model: MakeBaseModel, batch: Batch) -> None:
    """With eps- and v-prediction and the scheduler's own schedule; z = sqrt(a) z_t - sqrt(1 - a) v gives v from z_t and z."""
    scheduler = make_base_model(kind).scheduler
    draws = loss.draw_noise((4, 8, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
    losses = losses_of(PerfectNetwork(batch.target, scheduler), scheduler, batch, draws, WEIGHTS)
    torch.testing.assert_close(losses, torch.zeros(4), rtol=0, atol=1e-6)


def test_zero_terminal_snr_hides_the_target(make_base_model: MakeBaseModel) -> None:
    alpha_bar = make_base_model("toy").scheduler.alphas_cumprod[-1].view(1, 1, 1, 1)
    z, eps = normal(2, 1, 8, 8, 8)
    torch.testing.assert_close(diffusion.add_noise(z, eps, alpha_bar), eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.training_target(z, eps, alpha_bar, "v_prediction"), -z, rtol=0, atol=1e-6)


def test_noise_and_targets_equal_those_of_diffusers(make_base_model: MakeBaseModel) -> None:
    scheduler = make_base_model("toy").scheduler
    z, eps, t = normal(3, 8, 8, 8, seed=1), normal(3, 8, 8, 8, seed=2), torch.tensor([0, 500, 998])
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(diffusion.add_noise(z, eps, a), scheduler.add_noise(z, eps, t))
    torch.testing.assert_close(diffusion.training_target(z, eps, a, "v_prediction"), scheduler.get_velocity(z, eps, t))
    with pytest.raises(ValueError, match="got 'sample'"):
        diffusion.training_target(z, eps, a, "sample")


def test_a_dropped_picture_is_zeros_and_a_dropped_instruction_the_null_text(batch: Batch, scheduler: Any) -> None:
    net = PerfectNetwork(batch.target, scheduler)
    losses_of(net, scheduler, batch, draw_at(NO_TEXT, NO_IMAGE), UNWEIGHTED)
    c_I, c_T = net.conditions
    for i in range(4):
        assert torch.equal(c_T.hidden[i], batch.null.hidden[0] if NO_TEXT[i] else batch.text.hidden[i])
        assert torch.equal(c_I[i], torch.zeros_like(c_I[i]) if NO_IMAGE[i] else batch.source[i])


def test_draws_have_the_wanted_shares_and_follow_from_their_keys() -> None:
    dropout = ConditionDropout(text=0.1, image=0.2, both=0.05)
    shape = (20_000, 1, 1, 1)
    first, same, other = (loss.draw_noise(shape, 1000, dropout, 1.0, "a", step) for step in (1, 1, 2))
    for name in ("t", "eps", "no_text", "no_image"):
        assert torch.equal(getattr(first, name), getattr(same, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    both = first.no_text & first.no_image
    shares = [(first.no_text & ~both).float().mean(), (first.no_image & ~both).float().mean(), both.float().mean()]
    torch.testing.assert_close(torch.stack(shares), torch.tensor([0.1, 0.2, 0.05]), rtol=0, atol=0.01)
    assert first.t.min() == 0
    assert first.t.max() == 999
    torch.testing.assert_close(first.t.float().mean(), torch.tensor(499.5), rtol=0, atol=5)
    late = loss.draw_noise(shape, 1000, dropout, 0.5, "a", 1).t.float()
    torch.testing.assert_close(late.mean(), torch.tensor(666.0), rtol=0, atol=8)


def test_the_draws_of_a_shard_are_rows_of_those_of_the_batch() -> None:
    draws = loss.draw_noise((6, 1, 2, 2), 1000, ConditionDropout(), 1.0, "a")
    shard = draws.rows(slice(2, 4))
    for name in ("t", "eps", "no_text", "no_image"):
        assert torch.equal(getattr(shard, name), getattr(draws, name)[2:4])


def test_the_rarer_of_changed_and_unchanged_cells_count_more(batch: Batch) -> None:
    changed = loss.latent_change_mask(batch.source, batch.target)
    want = torch.zeros(4, 1, 8, 8)
    want[:, :, 2:4, 2:4] = 1
    assert torch.equal(changed, want)
    assert torch.equal(loss.balance_weights(changed, 0.0), torch.ones_like(changed))
    square_root = torch.where(want > 0, (4 / 64) ** -0.5, (60 / 64) ** -0.5)
    torch.testing.assert_close(loss.balance_weights(changed, 0.5), square_root)
    halves = loss.balance_weights(changed, 1.0)
    torch.testing.assert_close((halves * changed).sum((1, 2, 3)), (halves * (1 - changed)).sum((1, 2, 3)))
    for uniform in (torch.zeros_like(changed), torch.ones_like(changed)):
        torch.testing.assert_close(loss.balance_weights(uniform, 0.5), torch.ones_like(changed))


def test_latents_count_as_changed_above_the_threshold_on_average_over_channels() -> None:
    source, target = torch.zeros(1, 4, 1, 3), torch.zeros(1, 4, 1, 3)
    target[0, :, 0, 1] = loss.MIN_LATENT_CHANGE + 1e-3
    target[0, 0, 0, 2] = 4 * loss.MIN_LATENT_CHANGE - 1e-3  # large in one channel, below the threshold on average
    assert loss.latent_change_mask(source, target).flatten().tolist() == [0.0, 1.0, 0.0]


def test_both_weights_have_an_effect_on_the_loss(make_base_model: MakeBaseModel, batch: Batch) -> None:
    torch.manual_seed(1)
    base_model = make_base_model("toy")
    net = checkpoint.from_base_model(base_model, 6)
    draws = loss.draw_noise((4, 8, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
    v = net.table.v[batch.tasks].detach()
    plain, balanced, with_mask = (
        loss.loss_per_sample(net, base_model.scheduler, batch, draws, v, weights).detach()
        for weights in (UNWEIGHTED, LossWeights(mask_balance=0.5), LossWeights(change_loss_weight=0.3))
    )
    assert not torch.allclose(plain, balanced)
    torch.testing.assert_close(with_mask - plain, torch.full((4,), 0.3 * math.log(2)))  # at the start every logit is zero


def test_unchanged_cells_count_by_the_background_weight(batch: Batch, scheduler: Any) -> None:
    """An error of 1 in every unchanged cell and none in changed ones, both regions balanced."""

    class WrongBackgroundNetwork(PerfectNetwork):
        def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
            e, change_logits = super().forward(z_t, t, c_I, c_T, v)
            return Prediction(e + (change_logits < 0), change_logits)

    net = WrongBackgroundNetwork(batch.target, scheduler)
    for background_weight, want in ((1.0, 1 / 2), (0.25, 0.25 / 1.25)):
        weights = LossWeights(mask_balance=1.0, background_weight=background_weight)
        losses = losses_of(net, scheduler, batch, draw_at(), weights)
        torch.testing.assert_close(losses, torch.full((4,), want), rtol=0, atol=1e-4)


def test_the_exponent_of_timesteps_goes_from_the_first_value_to_the_second() -> None:
    assert [WEIGHTS.power_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match=r"two exponents above 0, got \[0.0, 1.0\]"):
        LossWeights(**(WEIGHTS.model_dump() | {"timestep_power": (0.0, 1.0)}))


def test_the_change_mask_is_learned_from_samples_with_all_conditions_alone(batch: Batch, scheduler: Any) -> None:
    """4 of 64 cells change. A network that predicts no change with logits of -99 loses 99 for each of them."""
    net = PerfectNetwork(batch.target, scheduler)
    net.change_logits = torch.full_like(net.change_logits, -99.0)
    draws = draw_at(NO_TEXT, NO_IMAGE)
    losses = losses_of(net, scheduler, batch, draws, LossWeights(change_loss_weight=1.0))
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.0, 0.0, 99 * 4 / 64]), rtol=0, atol=1e-4)
    balanced = losses_of(net, scheduler, batch, draws, LossWeights(change_loss_weight=1.0, change_mask_balance=1.0))
    torch.testing.assert_close(balanced[3], torch.tensor(99 / 2), rtol=0, atol=1e-3)
