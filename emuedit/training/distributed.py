"""Several processes that train one network: each takes its share of every batch, gradients are averaged before the step.

On a CPU two processes of one thread do more than one process of two, whose threads wait for each other at every operator.
With equal shares the mean of means is the mean, so the number of processes changes a step by rounding only.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from emuedit.runtime import set_env_defaults


@dataclass(frozen=True)
class ProcessGroup:
    """Who this process is among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process logs and saves for all."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Which of the n samples of a batch are this process's. ValueError where they cannot be shared evenly."""
        if n % self.size:
            raise ValueError(
                f"want a batch that {self.size} processes can share evenly, got {n}; choose a multiple of {self.size}"
            )
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def averaged(self, loss: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> float:
        """Average the gradients of `weights` over the crew, in place; returns the mean loss.

        They travel as `dtype`: bfloat16 halves the way and is what the gradients of a bfloat16 network are worth.
        """
        if self.size == 1:
            return loss.item()
        grads = [one.grad for one in weights if one.grad is not None]
        flat = torch.cat([one.reshape(-1).to(dtype) for one in grads])
        whole = loss.detach().clone()
        distributed.all_reduce(flat)
        distributed.all_reduce(whole)
        flat.div_(self.size)
        for grad, total in zip(grads, flat.split([one.numel() for one in grads]), strict=True):
            grad.copy_(total.view_as(grad))
        return whole.item() / self.size


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""For glibc: keep freed buffers. Given back after every operator and taken anew, they cost a sixth of a step."""


def size_for(asked: int, batch: int, device: str) -> int:
    """How many processes train: `asked`, or for 0 on a CPU the most cores that share the batch evenly, elsewhere one."""
    if asked or device != "cpu":
        return asked or 1
    return max(n for n in range(1, _cores() + 1) if batch % n == 0)


def together(size: int, work: Callable[..., object], *args: Any) -> None:
    """Run work(crew, *args) in `size` new processes and wait. A failure of one ends all and is raised here; so does our death."""
    set_env_defaults(KEEP_MEMORY)  # new processes read it
    with tempfile.TemporaryDirectory() as meeting:
        begin: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
        begin(_member, (size, str(Path(meeting, "met")), work, args), size, start_method="spawn")


def _member(rank: int, size: int, meeting: str, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torch's word of our parent's death; ignored under `nohup ... &`
    torch.set_num_threads(max(1, _cores() // size))
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        work(ProcessGroup(rank, size), *args)
    finally:
        distributed.destroy_process_group()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
