"""AdamW, its learning-rate schedule and the EMA of the weights: stepped, saved and resumed as one thing.

The editor, the task predictor and the toy world's models are all trained with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emuedit.training.schedule import Schedule

STATE_FILE = ".state.pt"
"""Name of the state in a scratch folder; it begins with a dot, so it is not published."""


class OptimizationError(ValueError):
    """Raised for a state that belongs to another training."""


class Optimization:
    """Everything that a training keeps besides the data: weights, optimizer, EMA, and the next step."""

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        *,
        weight_decay: float,
        max_grad_norm: float,
        ema_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        lr_mult: Callable[[str], float] = lambda name: 1.0,  # noqa: ARG005
    ) -> None:
        """`lr_mult` gives the factor of the learning rate for each parameter's name. `ema_decay` None keeps no average."""
        self.module, self.schedule, self.max_grad_norm, self.ema_decay = module, schedule, max_grad_norm, ema_decay
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        multipliers = {name: lr_mult(name) for name in self.parameters}
        groups = [
            {"params": [value for name, value in self.parameters.items() if multipliers[name] == mult], "lr_mult": mult}
            for mult in sorted(set(multipliers.values()))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.ema = {} if ema_decay is None else {name: value.detach().clone() for name, value in self.parameters.items()}
        self.step = 0
        """The next step, counted from 0."""

    @property
    def rate(self) -> float:
        """Learning rate of the next step, before the factors of the groups."""
        return self.schedule.rate(self.step)

    def update(self) -> Tensor:
        """One optimizer step with the gradients that the parameters have; returns their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["lr_mult"]
        norm: Tensor = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))  # fast at first: the start should not linger
            with torch.no_grad():
                for name, value in self.parameters.items():
                    self.ema[name].lerp_(value, 1 - decay)
        self.step += 1
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module holds the EMA weights inside of the `with` block. Tensors are exchanged, not copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def use_average(self) -> None:
        """Give the module the EMA weights for good."""
        with torch.no_grad():
            for name, value in self.ema.items():
                self.parameters[name].copy_(value)

    def save(self, file: Path) -> None:
        """Write the state as a whole or not at all."""
        state = {
            "weights": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
        }
        partial = file.with_name(f"{file.name}.part")
        torch.save(state, partial)
        partial.replace(file)

    def resume(self, file: Path, device: torch.device | str) -> None:
        """Continue from a saved state, if there is one. Raises OptimizationError for the state of another training."""
        if not file.exists():
            return
        state = torch.load(file, map_location=device, weights_only=True)
        if different := self._differences(state):
            raise OptimizationError(
                f"want the state of this training, got {file} of one with other {', '.join(different)}; delete it to train anew"
            )
        self.module.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.step = state["ema"], state["step"]

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        """What does not fit a saved state: weights (names and shapes), optimizer settings, EMA."""
        weights, groups = self.module.state_dict(), self.optimizer.state_dict()["param_groups"]
        saved_groups = state["optimizer"]["param_groups"]
        same = {
            "weights": _shapes(weights) == _shapes(state["weights"]),
            "optimizer settings": [_settings(group) for group in groups] == [_settings(group) for group in saved_groups],
            "EMA": self.ema.keys() == state["ema"].keys(),
        }
        return [name for name, is_same in same.items() if not is_same]

    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            if name in self.ema:
                parameter.data, self.ema[name] = self.ema[name], parameter.data


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _settings(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a group of the optimizer is set to, apart from its present learning rate."""
    return group["params"], group["lr_mult"], tuple(group["betas"]), group["weight_decay"]


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
