import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from emuedit.editor import checkpoint
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.training import loss
from emuedit.training.batches.batch import Batch
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED, ConditionDropout, LossWeights
from tests.training.perfect_network import WEIGHTS, PerfectNetwork, WrongNetwork, draw_at, losses_of, normal

NO_TEXT, NO_IMAGE = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, False])
MakeBaseModel = Callable[[str], TextToImageModel]


def test_size_conditions_reach_the_network(make_base_model: MakeBaseModel, batch: Batch, scheduler: Any) -> None:
    sizes = torch.tensor([[512, 384, 0, 16, 256, 256]] * 4)
    net = PerfectNetwork(batch.target, scheduler)
    losses_of(net, scheduler, replace(batch, sizes=sizes), draw_at(), UNWEIGHTED)
    assert net.sizes is not None
    assert torch.equal(net.sizes, sizes)


def test_a_dropped_picture_is_zeros_and_a_dropped_instruction_the_null_text(batch: Batch, scheduler: Any) -> None:
    text = TextCondition(batch.text.hidden, normal(4, 6, seed=4))
    null = TextCondition(batch.null.hidden, normal(1, 6, seed=5))
    net = PerfectNetwork(batch.target, scheduler)
    losses_of(net, scheduler, replace(batch, text=text, null=null), draw_at(NO_TEXT, NO_IMAGE), UNWEIGHTED)
    c_I, c_T = net.conditions
    for i in range(4):
        for name in ("hidden", "pooled"):
            want = getattr(null, name)[0] if NO_TEXT[i] else getattr(text, name)[i]
            assert torch.equal(getattr(c_T, name)[i], want), name
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


def test_shares_of_dropout_that_exceed_one_together_are_refused() -> None:
    """Draws split [0, 1) among them, so the last ones would be smaller than set."""
    everything = ConditionDropout(text=0.5, image=0.3, both=0.2)
    draws = loss.draw_noise((1000, 1, 1, 1), 1000, everything, 1.0, "a")
    assert (draws.no_text | draws.no_image).all()
    with pytest.raises(ValueError, match=r"want text, image and both .* to sum to at most 1, got 1\.1; lower one of them"):
        ConditionDropout(text=0.5, image=0.3, both=0.3)


def test_logit_normal_timesteps_are_the_sigmoid_of_a_standard_normal() -> None:
    """Esser et al., arXiv 2403.03206: t = sigmoid(x); its logit has mean 0 and standard deviation 1."""
    draws = loss.draw_noise((20_000, 1, 1, 1), 1000, NO_DROPOUT, 1.0, "a", timestep_sampling="logit_normal")
    logits = torch.logit((draws.t + 0.5) / 1000)
    torch.testing.assert_close(torch.stack([logits.mean(), logits.std()]), torch.tensor([0.0, 1.0]), rtol=0, atol=0.02)
    power = loss.draw_noise((20_000, 1, 1, 1), 1000, NO_DROPOUT, 1.0, "a")
    assert torch.equal(power.eps, draws.eps)
    with pytest.raises(ValueError, match=r"want timestep_power \[1.0, 1.0\] with timestep_sampling logit_normal"):
        LossWeights(timestep_sampling="logit_normal", timestep_power=(0.5, 1.0))


def test_the_draws_of_a_shard_are_rows_of_those_of_the_batch() -> None:
    draws = loss.draw_noise((6, 1, 2, 2), 1000, ConditionDropout(), 1.0, "a")
    shard = draws.rows(slice(2, 4))
    for name in ("t", "eps", "no_text", "no_image"):
        assert torch.equal(getattr(shard, name), getattr(draws, name)[2:4])


def test_the_rarer_of_changed_and_unchanged_cells_count_more(batch: Batch) -> None:
    changed = loss.latent_change_mask(batch.source, batch.target, UNWEIGHTED.min_latent_change)
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
    target[0, :, 0, 1] = 0.15 + 1e-3
    target[0, 0, 0, 2] = 4 * 0.15 - 1e-3  # large in one channel, below the threshold on average
    assert UNWEIGHTED.min_latent_change == 0.15
    assert loss.latent_change_mask(source, target, 0.15).flatten().tolist() == [0.0, 1.0, 0.0]


def test_the_smallest_latent_change_can_be_set(batch: Batch, scheduler: Any) -> None:
    """Changed cells differ by 3 in all channels: above that nothing counts as changed, and the exact mask is wrong."""
    net = PerfectNetwork(batch.target, scheduler)
    for min_latent_change, want in ((2.9, 0.0), (3.1, 99 * 4 / 64)):
        weights = LossWeights(change_loss_weight=1.0, min_latent_change=min_latent_change)
        losses = losses_of(net, scheduler, batch, draw_at(), weights)
        torch.testing.assert_close(losses, torch.full((4,), want), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["toy", "sd15"])
def test_encoded_pictures_change_where_pixels_do(kind: str, make_base_model: MakeBaseModel) -> None:
    """With a tiny autoencoder and with AutoencoderKL: a pair of equal pictures has an empty mask, one of unequal halves not."""
    base_model = make_base_model(kind)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    edited = images.clone()
    edited[..., 16:] = -edited[..., 16:]
    with torch.no_grad():
        before, after = base_model.encode(images), base_model.encode(edited)
    scale = before.std()  # a random VAE has no scaling factor
    assert not loss.latent_change_mask(before / scale, before / scale, 0.15).any()
    changed = loss.latent_change_mask(before / scale, after / scale, 0.15)
    assert changed[..., changed.shape[-1] // 2 :].mean() > 0.5


@pytest.mark.slow
def test_both_weights_have_an_effect_on_the_loss(make_base_model: MakeBaseModel, batch: Batch) -> None:
    torch.manual_seed(1)
    base_model = make_base_model("toy")
    net = checkpoint.from_base_model(base_model, 6)
    draws = loss.draw_noise((4, 8, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
    v = net.table.v[batch.tasks].detach()
    plain, balanced, with_mask = (
        loss.loss_parts(net, base_model.scheduler, batch, draws, v, weights).total(weights).detach()
        for weights in (UNWEIGHTED, LossWeights(mask_balance=0.5), LossWeights(change_loss_weight=0.3))
    )
    assert not torch.allclose(plain, balanced)
    torch.testing.assert_close(with_mask - plain, torch.full((4,), 0.3 * math.log(2)))  # at the start every logit is zero


def test_unchanged_cells_count_by_the_background_weight(batch: Batch, scheduler: Any) -> None:
    """An error of 1 in every unchanged cell and none in changed ones, both regions balanced."""
    net = WrongNetwork(batch.target, scheduler)
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
