"""Exponential moving average (EMA) of the trained weights, on their device or in CPU memory, in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from emuedit.runtime import seed_for
from emuedit.training.optim.sharded_tensors import local_part, part_number

CPU_EVERY_STEPS = 8
"""Steps between updates of an average in CPU memory, since each update copies the weights there. Ours."""


@dataclass(frozen=True)
class EmaSettings:
    """Settings of the average."""

    decay: float
    """Decay in [0, 1); smaller at the start, see `Ema.update`."""
    device: Literal["same", "cpu"] = "same"
    """Device: same as the weights, or CPU."""
    dtype: torch.dtype = torch.float32
    """float32, or bfloat16 with stochastic rounding."""


class Ema:
    """The averages of named parameters, initialised with the weights and sharded like them (FSDP).

    Each process updates its part of sharded tensors.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: EmaSettings) -> None:
        self.parameters, self.settings = parameters, settings
        self.every_steps = CPU_EVERY_STEPS if self._is_elsewhere else 1
        self.averages: dict[str, Tensor] = {name: self._to_ema(value.detach()).clone() for name, value in parameters.items()}
        self.pending_weight = 0.0
        """Weight in [0, 1) with which the present weights enter the average for the steps since its last update."""

    @property
    def _is_elsewhere(self) -> bool:
        return self.settings.device == "cpu" and any(value.device.type != "cpu" for value in self.parameters.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after a step, counted from 0.

        The decay is min(decay, (1 + step) / (10 + step)), so that initial weights are forgotten early (Polyak averaging as in
        TensorFlow's ExponentialMovingAverage and diffusers' EMAModel). If only every n-th step updates, the decay is applied n
        times; for the steps after the last update, `applied` and `use` apply it too, without a change of `averages`.
        """
        n_steps = step % self.every_steps + 1  # since the last update
        weight = 1 - min(self.settings.decay, (1 + step) / (10 + step)) ** n_steps
        self.pending_weight = weight if n_steps < self.every_steps else 0.0
        if self.pending_weight:
            return
        averages = [local_part(average) for average in self.averages.values()]
        values = [self._to_ema(local_part(value), torch.float32) for value in self.parameters.values()]
        if self.settings.dtype == torch.float32:
            torch._foreach_lerp_(averages, values, weight)
            return
        parts = [part_number(parameter) for parameter in self.parameters.values()]
        for number, (average, value, part) in enumerate(zip(averages, values, parts, strict=True)):
            seed = seed_for("ema", step, number, *([part] if part else []))  # different rounding noise per part
            round_stochastically(average, average.float().lerp_(value, weight), seed)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: the parameters have the averaged values inside the block.

        Averages on the same device and in the same format are swapped with the weights; else the weights are kept in CPU memory.
        """
        if not self._is_elsewhere and self.settings.dtype == torch.float32:
            self._exchange()
            try:
                yield
            finally:
                self._exchange()
            return
        weights = {name: local_part(value).to("cpu", copy=True) for name, value in self.parameters.items()}
        self.use()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    local_part(value).copy_(weights[name])

    @torch.no_grad()
    def use(self) -> None:
        """Set the parameters to the averages permanently."""
        for name, parameter in self.parameters.items():
            value, average = local_part(parameter), local_part(self.averages[name])
            if self.pending_weight:
                average = average.float().lerp(self._to_ema(value, torch.float32), self.pending_weight)
            value.copy_(average)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap weights and averages; for sharded tensors only the values, since FSDP has references to their memory."""
        for name, parameter in self.parameters.items():
            if isinstance(parameter, DTensor):
                weight, average = local_part(parameter), local_part(self.averages[name])
                earlier = weight.clone()
                weight.copy_(average)
                average.copy_(earlier)
            else:
                parameter.data, self.averages[name] = self.averages[name], parameter.data

    def _to_ema(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return value.to(device="cpu" if self.settings.device == "cpu" else None, dtype=dtype or self.settings.dtype)


def round_stochastically(target: Tensor, value: Tensor, seed: int) -> None:
    """Write float32 `value` into bfloat16 `target` with unbiased stochastic rounding.

    Rounding to nearest would drop changes below half a unit in the last place, i.e. nearly all updates with a decay near 1: the
    average would not change. Seeded, so that resumed runs are reproducible.
    """
    random = torch.Generator(value.device).manual_seed(seed)
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=random)
    bits = value.view(torch.int32).add_(noise).bitwise_and_(-65536)  # bfloat16 is the upper half of float32
    target.copy_(bits.view(torch.float32))
