"""The loss under every objective: noise levels, targets, min-SNR weights, with and without a change-mask head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from emuedit.core import diffusion
from emuedit.editor import checkpoint
from emuedit.editor.unet import extend_unet
from emuedit.models import objective
from emuedit.models.objective import Objective
from emuedit.models.text_to_image import TextToImageModel
from emuedit.training import loss
from emuedit.training.batches.batch import Batch
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED
from tests.editor.tiny_pipelines import SCHEDULE
from tests.training.perfect_network import WEIGHTS, PerfectNetwork, WrongNetwork, draw_at, losses_of, normal

MakeBaseModel = Callable[[str], TextToImageModel]


def schedulers() -> dict[tuple[Objective, bool], Any]:
    """(objective, zero terminal SNR) -> scheduler, all that an editor of Stable Diffusion 1.5 can be trained with."""
    choices: list[tuple[Objective, bool]] = [
        ("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True), ("flow", False),
    ]  # fmt: skip
    base = DDIMScheduler(**SCHEDULE)
    return {choice: objective.configure_scheduler(base, *choice) for choice in choices}


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("min_snr_gamma", [None, 5.0])
def test_a_perfect_network_has_no_loss(has_head: bool, min_snr_gamma: float | None, batch: Batch) -> None:
    """For every objective, at the scheduler's own noise levels, the first and the last of them included."""
    draws = loss.draw_noise((4, 8, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
    draws = replace(draws, t=torch.tensor([0, 300, 700, 999]))
    for choice, scheduler in schedulers().items():
        net: Any = PerfectNetwork(batch.target, scheduler, has_head)
        losses = loss.loss_parts(net, scheduler, batch, draws, torch.zeros(4, 6), WEIGHTS, min_snr_gamma).total(WEIGHTS)
        torch.testing.assert_close(losses, torch.zeros(4), rtol=0, atol=1e-6, msg=f"{choice}: {losses.tolist()}")


@pytest.mark.slow
def test_the_loss_is_that_of_the_paper_at_the_defaults(make_base_model: MakeBaseModel, batch: Batch) -> None:
    """Bit for bit the mean squared error, computed here from the betas alone; with v at zero terminal SNR, and with eps."""
    for kind in ("toy", "sd15"):
        base_model = make_base_model(kind)
        torch.manual_seed(1)
        channels = base_model.channels
        net = checkpoint.from_base_model(base_model, 6)
        source, target = batch.source[:, :channels], batch.target[:, :channels]
        draws = loss.draw_noise((4, channels, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
        v = net.table.v[batch.tasks].detach()
        alpha_bar = base_model.scheduler.alphas_cumprod[draws.t].view(-1, 1, 1, 1)
        with torch.no_grad():
            got = loss.loss_parts(
                net, base_model.scheduler, replace(batch, source=source, target=target), draws, v, UNWEIGHTED
            ).total(UNWEIGHTED)
            e = net(alpha_bar.sqrt() * target + (1 - alpha_bar).sqrt() * draws.eps, draws.t, source, batch.text, v).e
        eps_or_v = draws.eps if kind == "sd15" else alpha_bar.sqrt() * draws.eps - (1 - alpha_bar).sqrt() * target
        assert torch.equal(got, (e - eps_or_v).square().mean((1, 2, 3)))


def test_noise_and_targets_equal_those_of_diffusers(make_base_model: MakeBaseModel) -> None:
    scheduler = make_base_model("toy").scheduler
    z, eps, t = normal(3, 8, 8, 8, seed=1), normal(3, 8, 8, 8, seed=2), torch.tensor([0, 500, 998])
    levels = objective.noise_levels(scheduler, t)
    torch.testing.assert_close(diffusion.add_noise(z, eps, *levels), scheduler.add_noise(z, eps, t))
    torch.testing.assert_close(diffusion.training_target(z, eps, *levels, "v_prediction"), scheduler.get_velocity(z, eps, t))


def test_the_network_is_asked_at_the_timesteps_of_its_scheduler(batch: Batch) -> None:
    """Flow matching trains at T sigma with sigma in (0, 1], shifted; the others at the drawn index itself."""
    for (kind, _), scheduler in schedulers().items():
        net = PerfectNetwork(batch.target, scheduler)
        losses_of(net, scheduler, batch, draw_at(), UNWEIGHTED)
        assert net.t.tolist() == ([11.0, 21.0, 31.0, 41.0] if kind == "flow" else [10, 20, 30, 40])


def test_min_snr_makes_equal_errors_of_the_clean_latents_count_alike(batch: Batch) -> None:
    """The variance preserving objectives, each with a network whose clean latents are wrong by 0.1 everywhere."""

    class AlmostPerfectNetwork(PerfectNetwork):
        def __init__(self, target: Tensor, scheduler: Any) -> None:
            super().__init__(target + 0.1, scheduler)

    draws = replace(draw_at(), t=torch.tensor([5, 300, 700, 990]))
    losses = {}
    for (kind, zero_snr), scheduler in schedulers().items():
        if not zero_snr and kind != "flow":
            net: Any = AlmostPerfectNetwork(batch.target, scheduler)
            losses[kind] = loss.loss_parts(net, scheduler, batch, draws, torch.zeros(4, 6), UNWEIGHTED, 5.0).denoising
            a, s = objective.noise_levels(scheduler, draws.t)
    want = ((a / s) ** 2).clamp_max(5).flatten() * 0.01
    torch.testing.assert_close(want[0], torch.tensor(0.05), msg="the first timestep's SNR is above gamma")
    for kind in ("epsilon", "v_prediction", "sample"):
        torch.testing.assert_close(losses[kind], want, rtol=1e-3, atol=0)


def test_without_a_change_mask_head_the_loss_is_the_plain_error(batch: Batch, scheduler: Any) -> None:
    """60 of 64 cells are wrong by 1; weights of regions and of the head have no effect."""
    net = WrongNetwork(batch.target, scheduler, has_head=False)
    for weights in (UNWEIGHTED, WEIGHTS):
        losses = losses_of(net, scheduler, batch, draw_at(), weights)
        torch.testing.assert_close(losses, torch.full((4,), 60 / 64), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change_mask", "objective_name"),
    [
        ("sd15", True, "epsilon"), ("sd15", False, "v_prediction"), ("sdxl", True, "sample"), ("sdxl", True, "flow"),
        ("sdxl", False, "flow"),
    ],
)  # fmt: skip
def test_every_objective_is_learned(kind: str, change_mask: bool, objective_name: Any, make_base_model: MakeBaseModel) -> None:
    """Ten steps on one batch lower the loss, with and without the head."""
    torch.manual_seed(1)
    base_model = make_base_model(kind)
    scheduler = objective.configure_scheduler(base_model.scheduler, objective_name)
    net = checkpoint.from_base_model(base_model, 6)
    net.unet = extend_unet(base_model.unet, 6, change_mask)
    text, null = base_model.encode_text(["a star", "a ring"]), base_model.null_text(1)
    source, target = normal(2, 2, base_model.channels, 8, 8)
    batch = Batch(source, target, text, null, torch.arange(2), tuple("ab"), ("a star", "a ring"))
    draws = loss.draw_noise((2, base_model.channels, 8, 8), 1000, NO_DROPOUT, 1.0, "test")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        parts = loss.loss_parts(net, scheduler, batch, draws, net.table.v[batch.tasks], UNWEIGHTED, 5.0)
        value = parts.total(UNWEIGHTED).mean()
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0], losses
