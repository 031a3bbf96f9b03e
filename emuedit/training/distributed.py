"""Data-parallel training on one machine: every process takes its shard of each batch, and gradients are averaged.

On a CPU two processes with one thread do more than one with two, whose threads wait for each other at every operator. With
equal shards the mean of means is the mean, so the number of processes changes a step by rounding only.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from emuedit.runtime import KEEP_FREED_MEMORY, available_cores, die_with_parent, set_env_defaults


class DistributedError(RuntimeError):
    """Raised when a training process failed or died."""


@dataclass(frozen=True)
class TrainingProcess:
    """Which of the processes that train together this one is."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process logs and saves for all."""
        return self.rank == 0

    def shard(self, n: int) -> slice:
        """This process's part of the n samples of a batch. Raises ValueError where they cannot be split evenly."""
        if n % self.world_size:
            raise ValueError(
                f"want a batch that {self.world_size} processes can split evenly, got {n}; choose a multiple of {self.world_size}"
            )
        return slice(self.rank * n // self.world_size, (self.rank + 1) * n // self.world_size)

    def average_gradients(self, loss: Tensor, parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> float:
        """Average the gradients of `parameters` over the processes, in place; returns the mean loss.

        They are exchanged as `dtype`: bfloat16 halves the traffic and is the precision that such gradients have anyway.
        """
        if self.world_size == 1:
            return loss.item()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1).to(dtype) for gradient in gradients])
        mean_loss = loss.detach().clone()
        distributed.all_reduce(flat)
        distributed.all_reduce(mean_loss)
        flat.div_(self.world_size)
        for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))
        return mean_loss.item() / self.world_size


def n_processes(requested: int, batch_size: int, device: str) -> int:
    """How many processes train: `requested`, or for 0 on a CPU the most cores that split the batch evenly, elsewhere one."""
    if requested or device != "cpu":
        return requested or 1
    return max(n for n in range(1, available_cores() + 1) if batch_size % n == 0)


def run_distributed(world_size: int, work: Callable[..., object], *args: Any) -> None:
    """Run work(process, *args) in `world_size` new processes and wait. They end with this process, whatever ends it.

    Raises DistributedError, after all were ended, when one of them failed or died.
    """
    set_env_defaults(KEEP_FREED_MEMORY)  # read by the new processes
    with tempfile.TemporaryDirectory() as folder:
        start: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
        rendezvous = str(Path(folder, "rendezvous"))
        earlier = set(multiprocessing.active_children())
        try:
            start(_run_process, (world_size, rendezvous, work, args), world_size, start_method="spawn")
        except torch.multiprocessing.ProcessExitedException as error:  # type: ignore[attr-defined]
            raise DistributedError(f"a training process died ({error})") from error
        except torch.multiprocessing.ProcessRaisedException as error:  # type: ignore[attr-defined]
            raise DistributedError(f"a training process failed: {_explain(str(error))}") from error
        finally:
            for child in set(multiprocessing.active_children()) - earlier:  # this process was interrupted
                child.kill()
                child.join()


def _explain(trace: str) -> str:
    """The message of one of our own errors, which explains itself, or else the whole trace."""
    kind, _, message = trace.strip().rsplit("\n", 1)[-1].partition(": ")
    return message if kind.startswith("emuedit.") else trace.strip()


def _run_process(rank: int, world_size: int, rendezvous: str, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole process group; the parent decides
    die_with_parent()
    torch.set_num_threads(max(1, available_cores() // world_size))
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        work(TrainingProcess(rank, world_size), *args)
    finally:
        distributed.destroy_process_group()
