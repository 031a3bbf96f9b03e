"""The average of the weights: in other number formats and places it is the same but for rounding, and nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from emuedit.training.optim.ema import CPU_EVERY_STEPS, Ema, EmaSettings, round_stochastically
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import Optimization, read_average


def make_parameters() -> dict[str, nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in (("a", (40, 50)), ("b", (50,)))}


def walk(parameters: dict[str, nn.Parameter], ema: Ema, steps: int) -> None:
    """The weights move by the same small amount in every step."""
    for step in range(steps):
        with torch.no_grad():
            for value in parameters.values():
                value.add_(1e-3)
        ema.update(step)


def test_an_average_in_bfloat16_follows_one_in_float32() -> None:
    """Its changes are far below half a unit in the last place of bfloat16, so rounding to nearest would lose them all."""
    averages: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        parameters = make_parameters()
        ema = Ema(parameters, EmaSettings(0.999, dtype=dtype))
        walk(parameters, ema, 400)
        averages[str(dtype)] = ema.averages["a"].float()
        moved = (ema.averages["a"].float() - make_parameters()["a"]).mean().item()
    error = (averages["torch.bfloat16"] - averages["torch.float32"]).mean().abs().item()
    assert error < 0.02 * moved


def test_stochastic_rounding_has_the_value_as_its_mean_and_depends_on_the_seed() -> None:
    value = torch.full((20_000,), 1.0 + 2**-9)  # a quarter of the way between two numbers of bfloat16
    target = torch.empty(20_000, dtype=torch.bfloat16)
    round_stochastically(target, value.clone(), seed=1)
    assert sorted(target.unique().tolist()) == [1.0, 1.0 + 2**-7]
    assert (target == 1.0 + 2**-7).float().mean().item() == pytest.approx(0.25, abs=0.02)
    same, other = torch.empty_like(target), torch.empty_like(target)
    round_stochastically(same, value.clone(), seed=1)
    round_stochastically(other, value.clone(), seed=2)
    assert torch.equal(same, target)
    assert not torch.equal(other, target)


@pytest.mark.parametrize("settings", [EmaSettings(0.9), EmaSettings(0.9, "cpu"), EmaSettings(0.9, dtype=torch.bfloat16)])
def test_the_weights_come_back_exactly_after_the_block(settings: EmaSettings) -> None:
    parameters = make_parameters()
    ema = Ema(parameters, settings)
    walk(parameters, ema, 5)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    averages = {name: value.float() for name, value in ema.averages.items()}
    with ema.applied():
        for name, value in parameters.items():
            assert torch.equal(value, averages[name]), name
    for name, value in parameters.items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(ema.averages[name].float(), averages[name]), name


def test_an_average_in_cpu_memory_counts_the_steps_between_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the weights are elsewhere. For weights that stand still it is the same average."""
    monkeypatch.setattr(Ema, "_is_elsewhere", property(lambda ema: ema.settings.device == "cpu"))
    ends = []
    for device in ("same", "cpu"):
        parameters = make_parameters()
        ema = Ema(parameters, EmaSettings(0.9, device))  # type: ignore[arg-type]
        with torch.no_grad():
            parameters["a"].add_(1.0)
        for step in range(200, 200 + 2 * CPU_EVERY_STEPS):
            ema.update(step)
        ends.append(ema.averages["a"])
    torch.testing.assert_close(ends[1], ends[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_steps_after_the_last_update_of_an_average_in_cpu_memory_count(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 steps, the last 4 are after an update; here the weights change only in these."""
    monkeypatch.setattr(Ema, "_is_elsewhere", property(lambda ema: ema.settings.device == "cpu"))
    decay, first = 0.9, 25 * CPU_EVERY_STEPS
    parameters = make_parameters()
    ema = Ema(parameters, EmaSettings(decay, "cpu", dtype))
    start = {name: average.float().clone() for name, average in ema.averages.items()}
    for step in range(first, first + 12):
        if step == first + CPU_EVERY_STEPS:
            with torch.no_grad():
                parameters["a"].add_(1.0)
        ema.update(step)
    expected = start["a"] + (1 - decay**4) * (make_parameters()["a"] + 1 - start["a"])
    averages = {name: average.clone() for name, average in ema.averages.items()}
    tolerance = 1e-6 if dtype == torch.float32 else 0.04  # bfloat16 rounds 2.01 to 2.015
    with ema.applied():
        torch.testing.assert_close(parameters["a"].data, expected, rtol=0, atol=tolerance)
    assert torch.equal(parameters["a"], make_parameters()["a"] + 1)
    assert all(torch.equal(ema.averages[name], average) for name, average in averages.items())  # so it goes on as without
    ema.use()
    torch.testing.assert_close(parameters["a"].data, expected, rtol=0, atol=tolerance)


def optimize() -> Optimization:
    torch.manual_seed(0)
    schedule = LrSchedule(12, 0.1, warmup_steps=3, decay_share=0.5)
    return Optimization(nn.Linear(4, 1), schedule, weight_decay=0.1, max_grad_norm=1.0, ema=EmaSettings(0.9, "cpu"))


def train(optimization: Optimization, until: int) -> None:
    while optimization.step < until:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(optimization.step))
        optimization.module(inputs).sub(1).square().mean().backward()
        optimization.update()


@pytest.mark.parametrize("steps", [5, 8, 11])
def test_a_stop_between_two_updates_of_an_average_in_cpu_memory_loses_nothing(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ema, "_is_elsewhere", property(lambda ema: True))
    uninterrupted, resumed, reader, file = optimize(), optimize(), nn.Linear(4, 1), tmp_path / "state.pt"
    train(uninterrupted, steps)
    uninterrupted.save(file)
    resumed.resume(file)
    read_average(reader, file)
    with uninterrupted.averaged(), resumed.averaged():
        for module in (resumed.module, reader):
            assert torch.equal(module.weight, uninterrupted.module.weight)
    for optimization in (uninterrupted, resumed):
        train(optimization, 12)
        optimization.use_average()
    assert torch.equal(resumed.module.weight, uninterrupted.module.weight)
