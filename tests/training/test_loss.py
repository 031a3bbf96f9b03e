import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from emuedit.core import diffusion
from emuedit.editor import checkpoint
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.training import loss
from emuedit.training.loss import Batch, Draws, Dropout, Weights

WEIGHTS = Weights(late_times=(0.5, 1.0), rarity=1.0, kept=0.3, change=0.5, change_rarity=0.5)


def batch(n: int = 4) -> Batch:
    source = torch.randn(n, 8, 8, 8)
    target = source.clone()
    target[:, :, 2:4, 2:4] += 3
    text, null = TextCondition(torch.randn(n, 5, 16)), TextCondition(torch.zeros(1, 5, 16))
    return Batch(source, target, text, null, torch.arange(n), tuple("abcd"[:n]), ("make it red",) * n)


class Oracle(torch.nn.Module):
    """Says what a perfect network would, and remembers what it was shown."""

    def __init__(self, target: Tensor, alpha_bar: Tensor, kind: str) -> None:
        super().__init__()
        self.target, self.alpha_bar, self.kind = target, alpha_bar, kind
        self.change = torch.full_like(target[:, :1], -99.0)  # where `batch` changes, 2 x 2 cells of 8 x 8
        self.change[:, :, 2:4, 2:4] = 99

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        self.seen = c_I, c_T
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        eps = (z_t - a.sqrt() * self.target) / (1 - a).sqrt()
        e = eps if self.kind == "epsilon" else (a.sqrt() * z_t - self.target) / (1 - a).sqrt()
        return Prediction(e, self.change)


@pytest.mark.parametrize("shape", ["toy", "sd15"])
def test_a_perfect_network_has_no_loss(shape: str, make_painter: Callable[[str], TextToImageModel]) -> None:
    """eps- and v-prediction with the scheduler's own schedule; z = sqrt(a) z_t - sqrt(1 - a) v gives v from z_t and z."""
    scheduler, some = make_painter(shape).scheduler, batch()
    draws = loss.draw((4, 8, 8, 8), 1000, loss.NEVER, 1.0, "test")
    oracle = Oracle(some.target, scheduler.alphas_cumprod, scheduler.config.prediction_type)
    each = loss.per_sample(oracle, scheduler, some, draws, torch.zeros(4, 6), WEIGHTS)
    torch.testing.assert_close(each, torch.zeros(4), rtol=0, atol=1e-6)


def test_zero_terminal_snr_hides_the_target(make_painter: Callable[[str], TextToImageModel]) -> None:
    alpha_bar = make_painter("toy").scheduler.alphas_cumprod[-1].view(1, 1, 1, 1)
    z, eps = torch.randn(2, 1, 8, 8, 8)
    torch.testing.assert_close(diffusion.add_noise(z, eps, alpha_bar), eps, rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.training_target(z, eps, alpha_bar, "v_prediction"), -z, rtol=0, atol=1e-6)


def test_ours_is_diffusers(make_painter: Callable[[str], TextToImageModel]) -> None:
    scheduler = make_painter("toy").scheduler
    z, eps, t = torch.randn(3, 8, 8, 8), torch.randn(3, 8, 8, 8), torch.tensor([0, 500, 998])
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(diffusion.add_noise(z, eps, a), scheduler.add_noise(z, eps, t))
    torch.testing.assert_close(diffusion.training_target(z, eps, a, "v_prediction"), scheduler.get_velocity(z, eps, t))
    with pytest.raises(ValueError, match="got 'sample'"):
        diffusion.training_target(z, eps, a, "sample")


def test_dropped_conditions_are_zeros_and_the_null_text() -> None:
    some = batch()
    no_text, no_image = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, False])
    draws = Draws(torch.tensor([10, 20, 30, 40]), torch.randn(4, 8, 8, 8), no_text, no_image)
    scheduler = type("S", (), {"alphas_cumprod": torch.linspace(0.99, 0.01, 100), "config": type("C", (), {})})
    scheduler.config.prediction_type = "epsilon"
    oracle = Oracle(some.target, scheduler.alphas_cumprod, "epsilon")
    loss.per_sample(oracle, scheduler, some, draws, torch.zeros(4, 6), loss.PLAIN)
    c_I, c_T = oracle.seen
    for i in range(4):
        assert torch.equal(c_T.hidden[i], some.null.hidden[0] if no_text[i] else some.text.hidden[i])
        assert torch.equal(c_I[i], torch.zeros_like(c_I[i]) if no_image[i] else some.source[i])


def test_draws_keep_the_shares_and_follow_from_their_keys() -> None:
    shares = Dropout(text=0.1, image=0.2, both=0.05)
    shape = (20_000, 1, 1, 1)
    one, two, other = (loss.draw(shape, 1000, shares, 1.0, "a", step) for step in (1, 1, 2))
    for name in ("t", "eps", "no_text", "no_image"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    both = one.no_text & one.no_image
    found = [(one.no_text & ~both).float().mean(), (one.no_image & ~both).float().mean(), both.float().mean()]
    torch.testing.assert_close(torch.stack(found), torch.tensor([0.1, 0.2, 0.05]), rtol=0, atol=0.01)
    assert one.t.min() == 0
    assert one.t.max() == 999
    torch.testing.assert_close(one.t.float().mean(), torch.tensor(499.5), rtol=0, atol=5)
    late = loss.draw(shape, 1000, shares, 0.5, "a", 1).t.float()
    torch.testing.assert_close(late.mean(), torch.tensor(666.0), rtol=0, atol=8)


def test_what_is_rare_counts_more() -> None:
    some = batch()
    where = loss.changes(some.source, some.target)
    want = torch.zeros(4, 1, 8, 8)
    want[:, :, 2:4, 2:4] = 1
    assert torch.equal(where, want)
    assert torch.equal(loss.weighed(where, 0.0), torch.ones_like(where))
    square_root = torch.where(want > 0, (4 / 64) ** -0.5, (60 / 64) ** -0.5)
    torch.testing.assert_close(loss.weighed(where, 0.5), square_root)
    halves = loss.weighed(where, 1.0)
    torch.testing.assert_close((halves * where).sum((1, 2, 3)), (halves * (1 - where)).sum((1, 2, 3)))
    for all_alike in (torch.zeros_like(where), torch.ones_like(where)):
        torch.testing.assert_close(loss.weighed(all_alike, 0.5), torch.ones_like(where))


def test_the_weights_reach_the_loss(make_painter: Callable[[str], TextToImageModel]) -> None:
    some = batch()
    torch.manual_seed(1)
    base_model = make_painter("toy")
    net = checkpoint.from_base_model(base_model, 6)
    draws = loss.draw((4, 8, 8, 8), 1000, loss.NEVER, 1.0, "test")
    v = net.table.v[some.tasks].detach()
    kinds = loss.PLAIN, *(loss.PLAIN.model_copy(update=one) for one in ({"rarity": 0.5}, {"change": 0.3}))
    flat, weighed, placed = (loss.per_sample(net, base_model.scheduler, some, draws, v, kind).detach() for kind in kinds)
    assert not torch.allclose(flat, weighed)
    torch.testing.assert_close(placed - flat, torch.full((4,), 0.3 * math.log(2)))  # it starts by saying one in two everywhere


def test_what_stays_counts_as_little_as_is_asked() -> None:
    """An error of 1 in every cell that stays, none where it changes: halves alike, then `kept` beside 1."""
    some = batch()
    scheduler = type("S", (), {"alphas_cumprod": torch.linspace(0.99, 0.01, 100), "config": type("C", (), {})})
    scheduler.config.prediction_type = "epsilon"

    class Careless(Oracle):
        def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
            e, change = super().forward(z_t, t, c_I, c_T, v)
            return Prediction(e + (change < 0), change)

    draws = Draws(torch.tensor([10, 20, 30, 40]), torch.randn(4, 8, 8, 8), *[torch.zeros(4, dtype=torch.bool)] * 2)
    found = {}
    for kept in (1.0, 0.25):
        weights = loss.PLAIN.model_copy(update={"rarity": 1.0, "kept": kept})
        net = Careless(some.target, scheduler.alphas_cumprod, "epsilon")
        found[kept] = loss.per_sample(net, scheduler, some, draws, torch.zeros(4, 6), weights)
    torch.testing.assert_close(found[1.0], torch.full((4,), 1 / 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0.25], torch.full((4,), 0.25 / 1.25), rtol=0, atol=1e-4)


def test_times_go_from_the_first_exponent_to_the_second() -> None:
    assert [WEIGHTS.late(done) for done in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match=r"two exponents above 0, got \[0.0, 1.0\]"):
        Weights(**(WEIGHTS.model_dump() | {"late_times": (0.0, 1.0)}))


def test_where_it_changes_is_asked_of_those_who_were_told_everything() -> None:
    """Cells that change are 4 of 64; said to change nowhere, they cost 99 each; rare ones count more."""
    some, weights = batch(), loss.PLAIN.model_copy(update={"change": 1.0})
    scheduler = type("S", (), {"alphas_cumprod": torch.linspace(0.99, 0.01, 100), "config": type("C", (), {})})
    scheduler.config.prediction_type = "epsilon"
    oracle = Oracle(some.target, scheduler.alphas_cumprod, "epsilon")
    oracle.change = torch.full_like(oracle.change, -99.0)
    no_text, no_image = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, False])
    draws = Draws(torch.tensor([10, 20, 30, 40]), torch.randn(4, 8, 8, 8), no_text, no_image)
    each = loss.per_sample(oracle, scheduler, some, draws, torch.zeros(4, 6), weights)
    torch.testing.assert_close(each, torch.tensor([0.0, 0.0, 0.0, 99 * 4 / 64]), rtol=0, atol=1e-4)
    halves = loss.per_sample(oracle, scheduler, some, draws, torch.zeros(4, 6), weights.model_copy(update={"change_rarity": 1.0}))
    torch.testing.assert_close(halves[3], torch.tensor(99 / 2), rtol=0, atol=1e-3)
