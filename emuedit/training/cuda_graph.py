"""Capture the forward and backward pass of a training step as a CUDA graph, and replay it with new inputs.

For a small U-Net, launching kernels on the CPU takes longer than running them on the GPU. A replay launches all at once.
A graph uses fixed addresses: all steps need equal shapes, and gradients are overwritten, not accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from emuedit.training.batches.batch import Batch
from emuedit.training.loss import NoiseDraws

N_EAGER_CALLS = 3
"""Warm-up calls without a graph, in which libraries choose algorithms and reserve memory."""


class GraphedPasses:
    """Runs `run(batch, draws)`, which writes gradients to the parameters and returns losses, as a CUDA graph."""

    def __init__(self, run: Callable[[Batch, NoiseDraws], Tensor], device: torch.device) -> None:
        self._run, self._n_calls = run, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._losses: Tensor | None = None
        self._device, self._stream = device, torch.cuda.Stream(device)

    @property
    def keeps_gradients(self) -> bool:
        """Whether the gradient buffers belong to the graph, so that they must not be freed."""
        return self._graph is not None

    def __call__(self, batch: Batch, draws: NoiseDraws) -> Tensor:
        """The losses of the micro batch. Raises ValueError if its shapes differ from the first one's."""
        self._n_calls += 1
        if self._n_calls <= N_EAGER_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                losses = self._run(batch, draws)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            return losses
        if self._graph is None:
            graph, self._inputs = torch.cuda.CUDAGraph(), list(_tensors((batch, draws)))
            with torch.cuda.graph(
                graph, stream=self._stream, capture_error_mode="thread_local"
            ):  # another thread prepares batches
                self._losses = self._run(batch, draws)
            self._graph = graph
        else:
            for static_input, value in zip(self._inputs, _tensors((batch, draws)), strict=True):
                if static_input.shape != value.shape:
                    raise ValueError(
                        f"want inputs of one shape in every step of a CUDA graph, got {static_input.shape} and {value.shape}"
                    )
                static_input.copy_(value, non_blocking=True)
        self._graph.replay()
        assert self._losses is not None
        return self._losses.clone()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dataclasses and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
