"""Under FSDP2, which keeps a part of each weight in each process, a training is the same as without it."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from emuedit.tracking import read_stats
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import run_distributed
from emuedit.training.loop import TrainLoop
from emuedit.training.optim.ema import Ema, EmaSettings
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization
from emuedit.training.optim.sharded_tensors import to_full
from emuedit.training.training_error import TrainingError
from tests.training.sharded_processes import lone_process, shard_layers, sharding_accelerator, train_with_previews
from tests.training.tiny_training import SETTINGS, make_editor
from tests.warm_server import warm_up

FEW_STEPS = {"steps": 3, "eval_every_steps": 2, "save_every_s": 600.0, "accumulation_steps": 2}
SCHEDULE = LrSchedule(steps=12, lr=0.1, warmup_steps=3, decay_share=0.5)


@pytest.fixture
def sharding(tmp_path: Path) -> Iterator[None]:
    with lone_process(tmp_path):
        yield


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def walk(module: nn.Module, ema: Ema, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            for value in module.parameters():
                value.add_(0.1)
        ema.update(step)


def values_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: to_full(value).float().clone() for name, value in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("sharding")
def test_the_average_of_sharded_weights_is_that_of_whole_ones(dtype: torch.dtype) -> None:
    """Inside of the block the weights are the average, afterwards both go on as before."""
    ends = []
    for module in (make_module(), shard_layers(make_module())):
        parameters = dict(module.named_parameters())
        ema = Ema(parameters, EmaSettings(0.9, dtype=dtype))
        walk(module, ema, range(5))
        weights, averages = values_of(parameters), values_of(ema.averages)
        with ema.applied():
            torch.testing.assert_close(values_of(parameters), averages, rtol=0, atol=0)
            assert not torch.equal(values_of(parameters)["0.weight"], weights["0.weight"])
        torch.testing.assert_close(values_of(parameters), weights, rtol=0, atol=0)
        torch.testing.assert_close(values_of(ema.averages), averages, rtol=0, atol=0)
        walk(module, ema, range(5, 9))
        ema.use()
        torch.testing.assert_close(values_of(parameters), values_of(ema.averages), rtol=0, atol=0)
        ends.append(values_of(ema.averages))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


def optimize(module: nn.Module, accelerator: Any = None) -> Optimization:
    return Optimization(module, SCHEDULE, weight_decay=0.1, max_grad_norm=1.0, ema=EmaSettings(0.5), accelerator=accelerator)


def train(optimization: Optimization, until: int) -> None:
    """With a forward pass of the averaged weights after each step."""
    while optimization.step < until:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(optimization.step))
        optimization.backward(optimization.model(inputs).sub(1).square().mean())
        optimization.update()
        with optimization.averaged(), torch.no_grad():
            optimization.model(inputs)


@pytest.mark.parametrize("reshard_after_forward", [True, False])
@pytest.mark.usefixtures("sharding")
def test_a_forward_pass_of_the_averaged_weights_leaves_nothing_behind(
    reshard_after_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that FSDP keeps gathered after a forward pass would be those of the average in the next step."""
    alone = optimize(make_module())
    train(alone, 6)
    with sharding_accelerator() as accelerator:
        monkeypatch.setattr(type(accelerator), "reshard_after_forward", reshard_after_forward)
        sharded = optimize(make_module(), accelerator)
        train(sharded, 6)
    torch.testing.assert_close(values_of(sharded.parameters), values_of(alone.parameters))


def logged(scratch: Path, name: str) -> list[float]:
    rows = [line["metrics"] for line in read_stats(scratch / "stats.jsonl") if "metrics" in line]
    return [row[name] for row in rows if name in row]


@pytest.mark.usefixtures("sharding")
def test_a_save_has_one_gathered_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that does not write, as on the GPU of the main one, none is kept."""
    gathered: list[weakref.ref[torch.Tensor]] = []
    kept: list[int] = []
    full_tensor = DTensor.full_tensor

    def count(tensor: DTensor) -> torch.Tensor:
        kept.append(sum(reference() is not None for reference in gathered))
        full = full_tensor(tensor).clone()
        gathered.append(weakref.ref(full))
        return full

    with sharding_accelerator() as accelerator:
        optimization = optimize(make_module(), accelerator)
        train(optimization, 2)
        monkeypatch.setattr(DTensor, "full_tensor", count)
        monkeypatch.setattr(Optimization, "is_main_process", False)
        optimization.save(tmp_path / STATE_FILE)
    assert len(kept) >= 4 * len(optimization.parameters), "weights, two moments and the average"
    assert max(kept) == 0
    assert not (tmp_path / STATE_FILE).exists()


@pytest.mark.usefixtures("sharding")
def test_a_sharded_training_continues_from_its_state_bit_for_bit(tmp_path: Path) -> None:
    ends = []
    for stops in ((6,), (4, 6)):
        for until in stops:
            with sharding_accelerator() as accelerator:
                optimization = optimize(make_module(), accelerator)
                if len(stops) > 1:
                    optimization.resume(tmp_path / STATE_FILE)
                train(optimization, until)
                optimization.save(tmp_path / STATE_FILE)
        ends.append(values_of(optimization.parameters))
        if len(stops) == 1:
            (tmp_path / STATE_FILE).unlink()
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_that_share_the_weights_train_and_preview_as_one_that_has_all(cache_folder: Path, tmp_path: Path) -> None:
    warm_up()
    settings = SETTINGS.model_copy(update=FEW_STEPS | {"ema_dtype": "bfloat16"})
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    train_with_previews(cache_folder, alone, settings, False)
    run_distributed(2, "cpu", train_with_previews, cache_folder, sharded, settings, True)
    assert (state := torch.load(sharded / STATE_FILE, weights_only=True))["step"] == settings.steps
    assert {name: value.shape for name, value in state["ema"].items()} == {
        name: value.shape for name, value in torch.load(alone / STATE_FILE, weights_only=True)["ema"].items()
    }
    for name in ("loss", "held_out", "success"):
        assert logged(alone, name)
        np.testing.assert_allclose(logged(sharded, name), logged(alone, name), rtol=2e-2, err_msg=name)
    pictures = [torch.load(file) for file in (alone / "preview-0.pt", sharded / "preview-0.pt", sharded / "preview-1.pt")]
    torch.testing.assert_close(pictures[2], pictures[1], rtol=0, atol=0)
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=0.05)


@pytest.mark.usefixtures("sharding")
def test_an_average_in_cpu_memory_is_refused(cache_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"ema_device": "cpu"})
    cache = LatentCache(cache_folder, settings.held_out_share)
    want = r"want train\.ema_device same with sharded weights \(FSDP\), got cpu; set it to same"
    with sharding_accelerator() as accelerator, pytest.raises(TrainingError, match=want):
        TrainLoop(make_editor(settings), cache, settings, tmp_path, accelerator)
