"""A training resumes in another memory layout: convolutions are channels_last on a GPU, but not on a CPU or with FSDP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from emuedit.training.optim.ema import EmaSettings
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization
from emuedit.training.optim.sharded_tensors import local_part, to_full
from tests.training.sharded_processes import lone_process, sharding_accelerator

LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def optimize(layout: str, accelerator: Any = None) -> Optimization:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 6, 3), nn.SiLU(), nn.Conv2d(6, 4, 3)).to(memory_format=LAYOUTS[layout])
    schedule = LrSchedule(steps=10, lr=1e-2, warmup_steps=0, decay_share=0.0)
    return Optimization(module, schedule, weight_decay=0.01, max_grad_norm=1.0, ema=EmaSettings(0.9), accelerator=accelerator)


def train(optimization: Optimization, until: int) -> None:
    while optimization.step < until:
        inputs = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(optimization.step))
        optimization.backward(optimization.model(inputs).square().mean())
        optimization.update()


def assert_same_end(resumed: Optimization, uninterrupted: Optimization) -> None:
    assert resumed.ema is not None
    assert uninterrupted.ema is not None
    for name, value in uninterrupted.parameters.items():
        torch.testing.assert_close(to_full(resumed.parameters[name]), to_full(value), msg=name)
        torch.testing.assert_close(to_full(resumed.ema.averages[name]), to_full(uninterrupted.ema.averages[name]), msg=name)


def assert_layout_of_the_weights(optimization: Optimization) -> None:
    """A fused step on a GPU refuses moments in another layout; on a CPU it reads those of other weights."""
    for name, parameter in optimization.parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimization.optimizer.state[parameter][key]
            assert local_part(moment).stride() == local_part(parameter).stride(), (name, key)
            assert moment.stride() == parameter.stride(), (name, key)


@pytest.mark.parametrize("resumed_in", LAYOUTS)
@pytest.mark.parametrize("saved_in", LAYOUTS)
def test_moments_have_the_layout_of_their_weights(saved_in: str, resumed_in: str, tmp_path: Path) -> None:
    saved = optimize(saved_in)
    train(saved, 4)
    saved.save(tmp_path / STATE_FILE)
    train(saved, 6)
    resumed = optimize(resumed_in)
    resumed.resume(tmp_path / STATE_FILE)
    assert_layout_of_the_weights(resumed)
    train(resumed, 6)
    assert_same_end(resumed, saved)


@pytest.mark.slow
@pytest.mark.parametrize("saved_in", LAYOUTS)
def test_a_sharded_training_resumes_from_both_layouts(saved_in: str, tmp_path: Path) -> None:
    saved = optimize(saved_in)
    train(saved, 4)
    saved.save(tmp_path / STATE_FILE)
    train(saved, 6)
    with lone_process(tmp_path), sharding_accelerator() as accelerator:
        resumed = optimize("default", accelerator)
        resumed.resume(tmp_path / STATE_FILE)
        assert_layout_of_the_weights(resumed)
        train(resumed, 6)
        assert_same_end(resumed, saved)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_8_bit_state_keeps_its_bytes_in_the_same_layout(layout: str, tmp_path: Path) -> None:
    """Its blocks, each with a scale, are consecutive in memory."""
    saved = optimize(layout)
    weight = saved.parameters["0.weight"]
    codes = torch.empty_like(weight, dtype=torch.uint8)
    stored = torch.arange(codes.numel(), dtype=torch.int64).to(torch.uint8)
    codes.set_(stored.untyped_storage(), 0, codes.shape, codes.stride())  # type: ignore[call-overload]
    saved.optimizer.state[weight] = {"state1": codes}
    saved.save(tmp_path / STATE_FILE)
    resumed = optimize(layout)
    resumed.resume(tmp_path / STATE_FILE)
    placed = resumed.optimizer.state[resumed.parameters["0.weight"]]["state1"]
    assert torch.equal(torch.empty(0, dtype=torch.uint8).set_(placed.untyped_storage()), stored)  # type: ignore[call-overload]
