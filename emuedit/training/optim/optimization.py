"""Optimizer, learning-rate schedule and EMA of the weights, stepped, saved and resumed together.

Used to train the editor, the task predictor and the toy world's models, in one process or several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from emuedit.data.atomic_file import replacing
from emuedit.training.optim.ema import Ema, EmaSettings
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimizers import OptimizerName, build_optimizer
from emuedit.training.optim.sharded_tensors import free_gathered, gather, like_sharded, to_full

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = ".state.pt"
"""File name of the state in a scratch folder; the leading dot excludes it from publishing."""


class OptimizationError(ValueError):
    """Raised for a state that belongs to another training, and for weights that accelerate renames."""


class Optimization:
    """The state of a training except the data: trained weights, optimizer, EMA, and the next step.

    `module` is trained; `model` runs the forward passes: the module itself, or wrapped by accelerate.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: LrSchedule,
        *,
        weight_decay: float,
        max_grad_norm: float,
        ema: EmaSettings | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        lr_mult: Callable[[str], float] = lambda name: 1.0,  # noqa: ARG005
        optimizer: OptimizerName = "adamw",
        accelerator: Accelerator | None = None,
        save_frozen: bool = False,
    ) -> None:
        """`lr_mult`: parameter name -> factor of the learning rate. `ema` None: no average. `save_frozen`: the state also has the
        frozen parameters, for a module that changes them itself.

        Raises OptimizationError if accelerate's wrappers rename trained weights, as those of FSDP1 do."""
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
        if renamed := sorted(trained.keys() - self.parameters.keys()):
            raise OptimizationError(
                f"want the names of all {len(trained)} trained weights unchanged by accelerate, got {len(renamed)} renamed, such "
                f"as {renamed[0]}, which would not be clipped, averaged or saved; use the options of infra/accelerate/fsdp.yaml"
            )
        self.ema = None if ema is None else Ema(self.parameters, ema)
        self.step = 0
        """The next step, counted from 0."""
        self._save_frozen = save_frozen
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
        """Accumulate the gradients of a loss."""
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def update(self, keep_gradients: bool = False) -> Tensor:
        """One optimizer step with the accumulated gradients; returns their norm before clipping.

        keep_gradients: do not free them, for a CUDA graph that overwrites them in the next step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["lr_mult"]
        if self.accelerator is not None:
            self.accelerator.unscale_gradients(self.optimizer)  # FSDP2: its clip_grad_norm_ unscales twice if weights are frozen
        norm = to_full(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.max_grad_norm))
        self.optimizer.step()
        if not keep_gradients:
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the module has the EMA weights inside the block."""
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
        """Set the module to the EMA weights permanently."""
        if self.ema is not None:
            free_gathered(self.module)
            self.ema.use()

    def save(self, file: Path) -> None:
        """Write the state atomically. All processes call it; the main process writes.

        Tensors are named and unsharded, so that any number of processes can resume, with or without sharding.
        """
        main, averages = self.is_main_process, {} if self.ema is None else self.ema.averages
        state = {
            "weights": {name: gather(value, main) for name, value in self._weights().items()},
            "optimizer": self._optimizer_state(main),
            "ema": {name: gather(value, main) for name, value in averages.items()},
            "ema_pending_weight": 0.0 if self.ema is None else self.ema.pending_weight,
            "settings": self._settings,
            "scaler": self._scaler.state_dict() if self._scaler else {},
            "step": self.step,
        }
        if main:
            with replacing(file) as partial:
                torch.save(state, partial)

    @torch.no_grad()
    def resume(self, file: Path) -> None:
        """Resume from a saved state, if there is one. All processes call it.

        Raises OptimizationError for the state of another training, and if the processes have different states: their weights
        would diverge.
        """
        state = _read_state(file) if file.exists() else None
        self._check_same_step(0 if state is None else state["step"], file)
        if state is None:
            return
        if different := self._differences(state):
            raise OptimizationError(
                f"want the state of this training, got {file} with other {', '.join(different)}; delete it to start over"
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
            self.ema.pending_weight = state.get("ema_pending_weight", 0.0)
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
                f"want the same state in all processes, got the steps {steps} (by process) in {file}; share the folder "
                "among the machines, or delete the state on all of them to start over"
            )

    def _weights(self) -> dict[str, Tensor]:
        """Trained parameters and buffers; frozen parameters, such as those of the base model, only with `save_frozen`."""
        state = self.module.state_dict(keep_vars=True)
        if self._save_frozen:
            return state
        frozen = {name for name, _ in self.module.named_parameters(remove_duplicate=False)} - self.parameters.keys()
        return {name: value for name, value in state.items() if name not in frozen}

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
        """Differences from a saved state: weights (names and shapes), optimizer settings, EMA."""
        averages = {} if self.ema is None else self.ema.averages
        same = {
            "weights": _shapes(self._weights()) == _shapes(state["weights"]),
            "optimizer settings": self._settings == state["settings"],
            "EMA": averages.keys() == state["ema"].keys(),
        }
        return [name for name, is_same in same.items() if not is_same]


@torch.no_grad()
def read_average(module: nn.Module, file: Path) -> None:
    """Load the weights of a saved state into a module: averaged if available. Needs no optimizer."""
    state = _read_state(file)
    weights, averages, pending_weight = state["weights"], state["ema"], state.get("ema_pending_weight", 0.0)
    for name, value in module.state_dict(keep_vars=True).items():
        if name in averages:
            average = averages[name]
            value.copy_(average.float().lerp(weights[name].float(), pending_weight) if pending_weight else average)
        elif name in weights:
            value.copy_(weights[name])


def _read_state(file: Path) -> dict[str, Any]:
    """A memory-mapped saved state: each tensor is read when it is copied."""
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return state


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _place_state(value: Any, parameter: Tensor, optimizer: Any) -> Any:
    """A value of a saved optimizer state on the parameter's device, with its memory layout and sharding if it has its shape.

    The state may have another layout: convolutions are channels_last on a GPU, but not on a CPU or with FSDP. Fused optimizers
    read both in the order of their memory. For a paged optimizer, bitsandbytes allocates it in memory shared by GPU and CPU.
    """
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return like_sharded(value.clone(memory_format=torch.contiguous_format), parameter)
    allocator = getattr(optimizer, "optimizer", optimizer)  # wrapped by accelerate
    is_paged = getattr(allocator, "is_paged", False)
    allocate = allocator.get_state_buffer if is_paged else torch.empty_like
    return allocate(parameter, dtype=value.dtype).copy_(value)


def check_recipe(file: Path, recipe: Mapping[str, object], may_change: tuple[str, ...] = ()) -> None:
    """Write a training's recipe next to its state, or raise OptimizationError if the state has another recipe."""
    if file.exists():
        earlier = json.loads(file.read_text())
        different = sorted(key for key in recipe if key not in may_change and earlier.get(key) != recipe[key])
        if different:
            raise OptimizationError(
                f"{file.parent} was started with another recipe ({', '.join(different)}); delete it to start over"
            )
    with replacing(file) as partial:  # a file that was cut would stop every later start
        partial.write_text(json.dumps(dict(recipe)))
