"""The optimizer, its learning-rate schedule and the EMA of the weights: stepped, saved and resumed as one thing.

The editor, the task predictor and the toy world's models are all trained with it, in one process or in several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emuedit.data.atomic_file import replacing
from emuedit.training.ema import Ema, EmaSettings
from emuedit.training.optimizers import OptimizerName, build_optimizer
from emuedit.training.schedule import Schedule
from emuedit.training.sharded_tensors import free_gathered, gather, like_sharded, to_full

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = ".state.pt"
"""Name of the state in a scratch folder; it begins with a dot, so it is not published."""


class OptimizationError(ValueError):
    """Raised for a state that belongs to another training."""


class Optimization:
    """Everything that a training keeps besides the data: trained weights, optimizer, EMA, and the next step.

    `module` is what is trained, `model` what forward passes are made with: the module itself, or wrapped by accelerate.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        *,
        weight_decay: float,
        max_grad_norm: float,
        ema: EmaSettings | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        lr_mult: Callable[[str], float] = lambda name: 1.0,  # noqa: ARG005
        optimizer: OptimizerName = "adamw",
        accelerator: Accelerator | None = None,
    ) -> None:
        """`lr_mult` gives the factor of the learning rate for each parameter's name. Without `ema` no average is kept."""
        self.module, self.schedule, self.max_grad_norm, self.accelerator = module, schedule, max_grad_norm, accelerator
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        multipliers = {name: lr_mult(name) for name in trained}
        groups = [
            {"params": [value for name, value in trained.items() if multipliers[name] == mult], "lr_mult": mult}
            for mult in sorted(set(multipliers.values()))
        ]
        self.optimizer: torch.optim.Optimizer = build_optimizer(optimizer, groups, schedule.lr, betas, weight_decay)
        self.model: nn.Module = module
        if accelerator is not None:
            self.model, self.optimizer = accelerator.prepare(module, self.optimizer)
        self.parameters = {name: value for name, value in module.named_parameters() if name in trained}  # FSDP replaces them
        self.ema = None if ema is None else Ema(self.parameters, ema)
        self.step = 0
        """The next step, counted from 0."""
        self._settings = {name: [multipliers[name], *betas, weight_decay, optimizer] for name in trained}

    @property
    def rate(self) -> float:
        """Learning rate of the next step, before the factors of the groups."""
        return self.schedule.rate(self.step)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the state."""
        return self.accelerator is None or self.accelerator.is_main_process

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those the parameters have."""
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def update(self, keep_gradients: bool = False) -> Tensor:
        """One optimizer step with the gradients that the parameters have; returns their norm before clipping.

        keep_gradients: leave them, clipped, for a CUDA graph that overwrites them in the next step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["lr_mult"]
        clip = nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
        norm = to_full(clip(list(self.parameters.values()), self.max_grad_norm))
        self.optimizer.step()
        if not keep_gradients:
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module holds the EMA weights inside of the `with` block."""
        if self.ema is None:
            yield
            return
        free_gathered(self.module)
        try:
            with self.ema.applied():
                yield
        finally:
            free_gathered(self.module)

    def use_average(self) -> None:
        """Give the module the EMA weights for good."""
        if self.ema is not None:
            free_gathered(self.module)
            self.ema.use()

    def save(self, file: Path) -> None:
        """Write the state as a whole or not at all. All processes call it, the main one writes.

        Tensors are named and whole, so that any number of processes, with or without sharding, can continue.
        """
        main, averages = self.is_main_process, {} if self.ema is None else self.ema.averages
        state = {
            "weights": {name: gather(value, main) for name, value in self._weights().items()},
            "optimizer": self._optimizer_state(main),
            "ema": {name: gather(value, main) for name, value in averages.items()},
            "settings": self._settings,
            "scaler": self._scaler.state_dict() if self._scaler else {},
            "step": self.step,
        }
        if main:
            with replacing(file) as partial:
                torch.save(state, partial)

    @torch.no_grad()
    def resume(self, file: Path) -> None:
        """Continue from a saved state, if there is one. All processes call it.

        Raises OptimizationError for the state of another training, and where some processes have a state and others none or
        another: they would train on with different weights.
        """
        state = _read_state(file) if file.exists() else None
        self._check_same_step(0 if state is None else state["step"], file)
        if state is None:
            return
        if different := self._differences(state):
            raise OptimizationError(
                f"want the state of this training, got {file} of one with other {', '.join(different)}; delete it to train anew"
            )
        for name, value in self._weights().items():
            value.copy_(like_sharded(state["weights"][name], value))
        for name, values in state["optimizer"].items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                key: _place_state(value, parameter, self.optimizer) for key, value in values.items()
            }
        if self.ema is not None:
            for name, value in self.ema.averages.items():
                value.copy_(like_sharded(state["ema"][name], value))
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def _check_same_step(self, step: int, file: Path) -> None:
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        steps = gather_object([step])
        if len(set(steps)) > 1:
            raise OptimizationError(
                f"want the same state in all processes, got the steps {steps} (process by process) in {file}; share the folder "
                "among the machines, or delete the state on all of them to train anew"
            )

    def _weights(self) -> dict[str, Tensor]:
        """What changes: trained parameters and buffers. Frozen parameters are the base model's."""
        frozen = {name for name, _ in self.module.named_parameters(remove_duplicate=False)} - self.parameters.keys()
        return {name: value for name, value in self.module.state_dict(keep_vars=True).items() if name not in frozen}

    def _optimizer_state(self, keep: bool) -> dict[str, dict[str, Any]]:
        """Parameter name -> its state, to write to a file (`gather`)."""
        states = self.optimizer.state
        return {
            name: {key: gather(value, keep) if isinstance(value, Tensor) else value for key, value in states[parameter].items()}
            for name, parameter in self.parameters.items()
            if parameter in states
        }

    @property
    def _scaler(self) -> Any:
        """accelerate's gradient scaler, which float16 needs, or None."""
        return None if self.accelerator is None else self.accelerator.scaler

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        """What does not fit a saved state: weights (names and shapes), optimizer settings, EMA."""
        if "settings" not in state:
            return ["format (it was saved by an earlier version)"]
        averages = {} if self.ema is None else self.ema.averages
        same = {
            "weights": _shapes(self._weights()) == _shapes(state["weights"]),
            "optimizer settings": self._settings == state["settings"],
            "EMA": averages.keys() == state["ema"].keys(),
        }
        return [name for name, is_same in same.items() if not is_same]


@torch.no_grad()
def read_average(module: nn.Module, file: Path) -> None:
    """Give a module the weights of a saved state, averaged where it has an average; no optimizer is needed for that."""
    state = _read_state(file)
    saved = state["weights"] | state["ema"]
    for name, value in module.state_dict(keep_vars=True).items():
        if name in saved:
            value.copy_(saved[name])


def _read_state(file: Path) -> dict[str, Any]:
    """A saved state, of which each tensor is read from the file when it is copied: no process has all of it in memory."""
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return state


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _place_state(value: Any, parameter: Tensor, optimizer: Any) -> Any:
    """A value of a saved optimizer state, sharded as the parameter if it has its shape, on the parameter's device.

    A paged optimizer of bitsandbytes allocates it, in memory that the GPU shares with the CPU.
    """
    if not isinstance(value, Tensor):
        return value
    is_sharded_alike = value.shape == parameter.shape
    allocator = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
    if getattr(allocator, "is_paged", False) and is_sharded_alike:
        buffer = allocator.get_state_buffer(parameter, dtype=value.dtype)
        buffer.copy_(value)
        return buffer
    return like_sharded(value.clone(), parameter) if is_sharded_alike else value.to(parameter.device, copy=True)


def check_recipe(file: Path, recipe: Mapping[str, object], may_change: tuple[str, ...] = ()) -> None:
    """Write a training's recipe beside its state, or raise OptimizationError where the state was begun with another one."""
    if file.exists():
        earlier = json.loads(file.read_text())
        different = sorted(key for key in recipe if key not in may_change and earlier.get(key) != recipe[key])
        if different:
            raise OptimizationError(
                f"{file.parent} was begun with another recipe ({', '.join(different)}); delete it to train anew"
            )
    file.write_text(json.dumps(dict(recipe)))
