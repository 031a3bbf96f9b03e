import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from emuedit.training.distributed import open_accelerator
from emuedit.training.optim import optimization as optimization_module
from emuedit.training.optim.ema import EmaSettings
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization, OptimizationError, check_recipe, read_average
from emuedit.training.optim.optimizers import OptimizerError

SCHEDULE = LrSchedule(steps=12, lr=0.1, warmup_steps=3, decay_share=0.5)
INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def make_module(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(4, width), "last": nn.Linear(width, 1)})


def optimize(module: nn.Module, **changes: Any) -> Optimization:
    settings: dict[str, Any] = {"weight_decay": 0.1, "max_grad_norm": 1.0, "ema": EmaSettings(0.9)}
    settings["lr_mult"] = lambda name: 2.0 if name.startswith("last.") else 1.0
    return Optimization(module, SCHEDULE, **(settings | changes))


def train(optimization: Optimization, until: int) -> None:
    while optimization.step < until:
        module = optimization.module
        inputs = INPUTS + 0.1 * torch.randn(8, 4, generator=torch.Generator().manual_seed(optimization.step))
        module["last"](module["first"](inputs).tanh()).sub(1).square().mean().backward()
        optimization.update()


def weights_of(optimization: Optimization) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in optimization.module.state_dict().items()}


def averages_of(optimization: Optimization) -> dict[str, torch.Tensor]:
    assert optimization.ema is not None
    return {name: value.clone() for name, value in optimization.ema.averages.items()}


def test_a_run_stopped_half_way_and_resumed_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = optimize(make_module())
    train(uninterrupted, 12)
    stopped = optimize(make_module())
    train(stopped, 5)
    stopped.save(tmp_path / STATE_FILE)
    train(stopped, 7)  # what was done after the save is lost, as by a kill
    resumed = optimize(make_module())
    with torch.no_grad():
        for value in resumed.module.parameters():
            value.zero_()  # nothing of the start may remain
    resumed.resume(tmp_path / STATE_FILE)
    assert resumed.step == 5
    train(resumed, 12)
    assert resumed.step == uninterrupted.step == 12
    for name, value in weights_of(uninterrupted).items():
        assert torch.equal(weights_of(resumed)[name], value), name
        assert torch.equal(averages_of(resumed)[name], averages_of(uninterrupted)[name]), name


def test_a_state_is_mapped_into_memory_until_it_was_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with eight GPUs eight processes would each read all of it."""
    optimization = optimize(make_module())
    train(optimization, 2)
    optimization.save(tmp_path / STATE_FILE)
    load, options = torch.load, []

    def record(file: Path, **arguments: Any) -> Any:
        options.append(arguments)
        return load(file, **arguments)

    monkeypatch.setattr(torch, "load", record)
    optimization.resume(tmp_path / STATE_FILE)
    read_average(make_module(), tmp_path / STATE_FILE)
    assert options == [{"map_location": "cpu", "weights_only": True, "mmap": True}] * 2
    assert str(tmp_path / STATE_FILE) not in Path("/proc/self/maps").read_text()


def test_without_a_state_it_starts_at_the_first_step(tmp_path: Path) -> None:
    optimization = optimize(make_module())
    optimization.resume(tmp_path / STATE_FILE)
    assert (optimization.step, optimization.rate) == (0, pytest.approx(0.1 / 3))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: optimize(make_module(width=5)), "weights"),
        (lambda: optimize(nn.ModuleDict({"other": nn.Linear(4, 3), "last": nn.Linear(3, 1)})), "weights"),
        (lambda: optimize(make_module(), weight_decay=0.2), "optimizer settings"),
        (lambda: optimize(make_module(), betas=(0.8, 0.99)), "optimizer settings"),
        (lambda: optimize(make_module(), lr_mult=lambda name: 1.0), "optimizer settings"),
        (lambda: optimize(make_module(), ema=None), "EMA"),
    ],
)
def test_the_state_of_another_recipe_is_refused(other: Callable[[], Optimization], difference: str, tmp_path: Path) -> None:
    optimization = optimize(make_module())
    train(optimization, 2)
    optimization.save(tmp_path / STATE_FILE)
    refusing = other()
    before = weights_of(refusing)
    with pytest.raises(
        OptimizationError,
        match=rf"want the state of this training, got .*state\.pt with other .*{difference}.*; delete it",
    ):
        refusing.resume(tmp_path / STATE_FILE)
    assert refusing.step == 0
    for name, value in weights_of(refusing).items():
        assert torch.equal(value, before[name]), "a refused state must not change the weights"


class PagedOptimizer(torch.optim.AdamW):
    """With the methods by which a paged optimizer of bitsandbytes allocates its state."""

    is_paged = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.buffers: list[torch.Tensor] = []

    def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.buffers.append(torch.zeros_like(parameter, dtype=dtype))
        return self.buffers[-1]


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_the_state_of_a_paged_optimizer_is_allocated_by_it_again(
    is_wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ordinary tensors of the GPU in its place would not be paged any more."""
    monkeypatch.setattr(optimization_module, "build_optimizer", lambda name, groups, lr, *rest: PagedOptimizer(groups, lr))
    with open_accelerator() if is_wrapped else nullcontext() as accelerator:
        begun = optimize(make_module(), accelerator=accelerator)
        train(begun, 2)
        begun.save(tmp_path / STATE_FILE)
        resumed = optimize(make_module(), accelerator=accelerator)
        resumed.resume(tmp_path / STATE_FILE)
    paged = getattr(resumed.optimizer, "optimizer", resumed.optimizer).buffers
    assert len(paged) == 2 * len(resumed.parameters)
    for name, parameter in resumed.parameters.items():
        moments = {key: resumed.optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
        for key, moment in moments.items():
            assert any(moment is buffer for buffer in paged), name
            assert torch.equal(moment, begun.optimizer.state[begun.parameters[name]][key]), name


def test_a_save_that_fails_leaves_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimization = optimize(make_module())
    train(optimization, 2)
    optimization.save(tmp_path / STATE_FILE)
    train(optimization, 4)

    def fail(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        optimization.save(tmp_path / STATE_FILE)
    resumed = optimize(make_module())
    resumed.resume(tmp_path / STATE_FILE)
    assert resumed.step == 2


def test_the_average_follows_the_weights_faster_at_the_start() -> None:
    """ema <- decay ema + (1 - decay) weights, with decay = min(0.9, (1 + step) / (10 + step))."""
    optimization = optimize(make_module())
    want = weights_of(optimization)
    for step in range(12):
        train(optimization, step + 1)
        decay = min(0.9, (1 + step) / (10 + step))
        want = {name: decay * want[name] + (1 - decay) * value for name, value in weights_of(optimization).items()}
    torch.testing.assert_close(averages_of(optimization), want)


def test_the_module_holds_the_average_inside_of_the_block_only() -> None:
    optimization = optimize(make_module())
    train(optimization, 4)
    trained, average = weights_of(optimization), averages_of(optimization)
    inside: dict[str, torch.Tensor] = {}

    def stop_inside() -> None:
        with optimization.averaged():
            inside.update(weights_of(optimization))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_inside()
    for name, value in weights_of(optimization).items():
        assert torch.equal(inside[name], average[name]), name
        assert torch.equal(value, trained[name]), name
        assert torch.equal(averages_of(optimization)[name], average[name]), name
    optimization.use_average()
    for name, value in weights_of(optimization).items():
        assert torch.equal(value, average[name]), name


def test_an_optimization_without_average_changes_nothing_in_the_block() -> None:
    optimization = optimize(make_module(), ema=None)
    train(optimization, 2)
    before = weights_of(optimization)
    with optimization.averaged():
        pass
    optimization.use_average()
    for name, value in weights_of(optimization).items():
        assert torch.equal(value, before[name]), name


def test_rates_follow_the_schedule_times_the_factor_of_each_parameter() -> None:
    optimization = optimize(make_module())
    for step in range(12):
        train(optimization, step + 1)
        rates = {group["lr_mult"]: group["lr"] for group in optimization.optimizer.param_groups}
        assert rates == {1.0: SCHEDULE.rate(step), 2.0: 2 * SCHEDULE.rate(step)}


def test_parameters_with_a_factor_of_zero_and_frozen_ones_stay() -> None:
    module = make_module()
    module["first"].bias.requires_grad_(False)
    optimization = optimize(module, lr_mult=lambda name: 0.0 if name.startswith("last.") else 1.0)
    before = weights_of(optimization)
    train(optimization, 3)
    changed = {name for name, value in weights_of(optimization).items() if not torch.equal(value, before[name])}
    assert changed == {"first.weight"}
    assert "first.bias" not in averages_of(optimization)


def test_gradients_are_clipped_and_their_norm_before_is_returned() -> None:
    module = nn.Linear(1, 1, bias=False)
    optimization = optimize(module, max_grad_norm=0.5, lr_mult=lambda name: 1.0)
    module.weight.grad = torch.full((1, 1), 7.0)
    clipped: list[float] = []
    step = optimization.optimizer.step
    optimization.optimizer.step = lambda: (clipped.append(module.weight.grad.item()), step())  # type: ignore[method-assign]
    assert optimization.update().item() == pytest.approx(7.0)
    assert clipped == [pytest.approx(0.5, rel=1e-4)]
    assert module.weight.grad is None


def test_a_recipe_may_not_change_while_its_training_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    check_recipe(file, {"lr": 0.1, "steps": 10, "seed": 0})
    check_recipe(file, {"lr": 0.1, "steps": 20, "seed": 0}, may_change=("steps",))
    assert json.loads(file.read_text())["steps"] == 20
    with pytest.raises(OptimizationError, match=r"was started with another recipe \(lr, steps\); delete it to start over"):
        check_recipe(file, {"lr": 0.2, "steps": 30, "seed": 0})
    assert json.loads(file.read_text())["lr"] == 0.1


def test_only_what_changes_is_saved(tmp_path: Path) -> None:
    """Of adapters on a large frozen model, the state holds the adapters alone; of a batch normalisation, its statistics too."""
    module = nn.ModuleDict({"first": nn.Linear(4, 3), "norm": nn.BatchNorm1d(3), "last": nn.Linear(3, 1)})
    module["first"].requires_grad_(False)
    optimization = optimize(module)
    optimization.save(tmp_path / STATE_FILE)
    saved = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert set(saved["weights"]) == {
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
        "last.weight", "last.bias",
    }  # fmt: skip
    assert set(saved["ema"]) == {"norm.weight", "norm.bias", "last.weight", "last.bias"}


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_for_a_gpu_is_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(OptimizerError, match=rf"want a GPU for train.optimizer {name}, got cpu; use adamw"):
        optimize(make_module(), optimizer=name)


def test_the_average_of_a_saved_state_is_read_without_an_optimizer(tmp_path: Path) -> None:
    module = make_module()
    module["first"].weight.requires_grad_(False)  # not trained, so it is not in the state
    optimization = optimize(module)
    train(optimization, 5)
    optimization.save(tmp_path / STATE_FILE)
    optimization.use_average()
    reader = make_module()
    with torch.no_grad():
        for name, value in reader.named_parameters():
            if name != "first.weight":
                value.zero_()
    read_average(reader, tmp_path / STATE_FILE)
    for name, value in reader.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
