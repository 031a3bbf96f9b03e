"""Training in several processes: one per core of a CPU or per GPU, started here or by `accelerate_launch`.

Every process calls the same function, opens an `Accelerator`, and computes its shard of each batch. accelerate then averages
gradients (DDP) or also shards weights, gradients and optimizer state (FSDP). With equal shards, the mean of means is the mean, so
the number of processes changes a step only by rounding. On a CPU, two processes with one thread are faster than one with two
threads, which synchronise at every operator.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing.connection
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes  # type: ignore[attr-defined]

from emuedit.failures import FailureKind, ProcessFailedError, kind_of
from emuedit.processes import available_cores, begin_worker, prepare_workers, start_method

if TYPE_CHECKING:
    from accelerate import Accelerator

_MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
GROUP_TIMEOUT = timedelta(hours=2)
"""Timeout of a process that waits for the others (nccl: ten minutes): they wait while the main process computes a preview or
writes a state. A failed process is still detected immediately (`_wait`)."""
_FAILURE = "failure"  # file of the process that failed first: its kind, then the traceback


class DistributedError(ProcessFailedError):
    """Raised when a training process failed or died."""


@dataclass(frozen=True)
class TrainingProcesses:
    """The processes of a training."""

    device: str
    """Device of a process: cpu, cuda, cuda:1 or mps; with several processes on GPUs, each has its own."""
    n: int = 1
    """Number of processes, on all machines together."""
    is_sharded: bool = False
    """Whether they shard the weights (FSDP)."""

    @classmethod
    def of(cls, accelerator: Accelerator) -> TrainingProcesses:
        """Those of a running training."""
        return cls(str(accelerator.device), accelerator.num_processes, is_sharded(accelerator))

    @property
    def device_type(self) -> str:
        """cpu, cuda or mps."""
        return self.device.partition(":")[0]


def n_processes(requested: int, batch_size: int, device: str, on_this_machine: bool = True) -> int:
    """Number of processes: `requested`, or for 0 the most cores (CPU) or GPUs (cuda) that split the batch evenly.

    Raises ValueError if they cannot split the batch evenly, and for more than the GPUs if all run `on_this_machine`.
    """
    available = {"cpu": available_cores(), "cuda": torch.cuda.device_count()}.get(device, 1)
    if device.startswith("cuda") and on_this_machine and requested > available:
        advice = "" if device == "cuda" else ", or set train.device to cuda"
        raise ValueError(f"want at most {available} processes on {device}, got {requested}; lower train.processes{advice}")
    n = requested or max(n for n in range(1, max(1, available) + 1) if batch_size % n == 0)
    shard(batch_size, 0, n)
    return n


def shard(n: int, rank: int, world_size: int) -> slice:
    """Rows of the process `rank` in a batch of n samples. Raises ValueError if they cannot be split evenly."""
    if n % world_size:
        raise ValueError(f"want a batch that {world_size} processes can split evenly, got {n}; choose a multiple of {world_size}")
    return slice(rank * n // world_size, (rank + 1) * n // world_size)


def n_passes(batch_size: int, accumulation_steps: int, world_size: int) -> int:
    """Passes per process and step: as few as possible with at most batch_size / accumulation_steps samples per pass.

    More processes need fewer passes, at least one. Raises ValueError for a batch that cannot be split evenly.
    """
    if batch_size % accumulation_steps:
        raise ValueError(
            f"want a batch that {accumulation_steps} accumulation steps can split evenly, got {batch_size}; choose a multiple of "
            f"{accumulation_steps}"
        )
    rows, at_once = shard(batch_size, 0, world_size).stop, batch_size // accumulation_steps
    return next(n for n in range(math.ceil(rows / at_once), rows + 1) if rows % n == 0)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether weights are sharded (FSDP), so that all processes must take part in operations on them."""
    return str(accelerator.distributed_type).endswith("FSDP")


def keep_float32_losses(plugin: Any) -> None:
    """Let FSDP2 cast only the weights to half precision: latents, noise and losses stay float32, as with autocast.

    plugin: accelerate's, whose policy also casts the inputs and outputs of every sharded module. Ours need neither: `EditorUNet`
    casts the inputs of the U-Net to the format of its weights, and its output to float32.
    """
    policy = plugin.mixed_precision_policy
    plugin.mixed_precision_policy = replace(policy, output_dtype=None, cast_forward_inputs=False)


def find_unused_weights(accelerator: Accelerator) -> None:
    """Let DDP search for weights without a gradient in each step, for a module that has some, before it is prepared.

    The search goes through the graph of each pass, and warns on stderr where there are none.
    """
    accelerator.ddp_handler.find_unused_parameters = True


@contextlib.contextmanager
def open_accelerator(device: str = "cpu", dtype: str = "float32") -> Iterator[Accelerator]:
    """The Accelerator of this process for one training; afterwards another one can be opened.

    device: device of a single process; with several, each uses the GPU of its local rank.
    dtype: of the computations; weights, gradients and optimizer stay float32.
    """
    import accelerate
    from accelerate.state import AcceleratorState
    from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs, InitProcessGroupKwargs

    is_cpu = device == "cpu"
    if "LOCAL_RANK" not in os.environ:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        handlers = [ddp, InitProcessGroupKwargs(timeout=GROUP_TIMEOUT)]
        accelerator = accelerate.Accelerator(cpu=is_cpu, mixed_precision=_MIXED_PRECISION[dtype], kwargs_handlers=handlers)
        if dtype != "float32" and accelerator.is_fsdp2:
            keep_float32_losses(accelerator.state.fsdp_plugin)
        on_gpu = accelerator.device.type == "cuda"  # make it the current GPU, for streams and graphs
        if on_gpu and dtype == "bfloat16":  # halves the traffic; such gradients have no more precision
            ddp.comm_hook = DDPCommunicationHookType.BF16  # a torch without CUDA cannot register it
        with torch.cuda.device(accelerator.device) if on_gpu else contextlib.nullcontext():
            yield accelerator
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        AcceleratorState._reset_state(reset_partial_state=True)


def run_distributed(world_size: int, device: str, work: Callable[..., object], *args: Any) -> None:
    """Run work(*args) in `world_size` new processes and wait. They end whenever this process ends.

    If one fails or dies, ends all and raises DistributedError.
    """
    prepare_workers(device, ())
    with tempfile.TemporaryDirectory() as folder:
        earlier = set(multiprocessing.active_children())
        death: DistributedError | None = None
        try:
            arguments = (world_size, device, folder, dict(os.environ), work, args)
            context = start_processes(_run_process, arguments, world_size, join=False, start_method=start_method(device))
            death = _wait(context.processes)
            while not context.join():  # on a failure, ends the others and raises
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            raise (death or first_failure(Path(folder), str(error))) from error
        finally:
            for child in set(multiprocessing.active_children()) - earlier:  # this process was interrupted
                child.kill()
                child.join()


def record_failure(folder: Path, error: Exception) -> None:
    """Record kind and traceback of the first failure; the other processes fail later by lost connections."""
    trace = Path(folder, f"trace-{os.getpid()}")
    trace.write_text(f"{kind_of(error)}\n" + "".join(traceback.format_exception(error)))
    with contextlib.suppress(FileExistsError):
        os.link(trace, Path(folder, _FAILURE))


def first_failure(folder: Path, otherwise: str) -> DistributedError:
    """The error of the first recorded failure, or `otherwise`."""
    failure = Path(folder, _FAILURE)
    kind, trace = failure.read_text().split("\n", 1) if failure.exists() else (FailureKind.OTHER, otherwise)
    return DistributedError(f"a training process failed: {_explain(trace)}", FailureKind(kind))


def _wait(processes: Sequence[multiprocessing.Process]) -> DistributedError | None:
    """Wait until all processes end or one fails. Returns an error if one died by a signal."""
    while (alive := [process for process in processes if process.is_alive()]) and not any(
        process.exitcode for process in processes
    ):
        multiprocessing.connection.wait([process.sentinel for process in alive])
    for rank, process in enumerate(processes):
        status = process.exitcode or 0
        if status < 0:
            return death_by_signal(rank, -status)
    return None


def death_by_signal(rank: int, number: int) -> DistributedError:
    """The error of a process that died by a signal; SIGKILL is what the kernel's OOM killer sends."""
    is_killed = number == signal.SIGKILL
    cause = ", perhaps because memory ran out" if is_killed else ""
    message = f"a training process died (process {rank} by {signal.Signals(number).name}{cause})"
    return DistributedError(message, FailureKind.MEMORY if is_killed else FailureKind.OTHER)


def _explain(trace: str) -> str:
    """The message of one of our errors, else the whole traceback."""
    kind, _, message = trace.strip().rsplit("\n", 1)[-1].partition(": ")
    return message if kind.startswith("emuedit.") else trace.strip()


def _run_process(
    rank: int,
    world_size: int,
    device: str,
    folder: str,
    environment: Mapping[str, str],
    work: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    """One process of `run_distributed`. The rendezvous is a file, since a free port may be taken before it is used."""
    begin_worker(max(1, available_cores() // world_size), environment)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        distributed.init_process_group(
            backend, init_method=f"file://{folder}/rendezvous", timeout=GROUP_TIMEOUT, rank=rank, world_size=world_size
        )
        work(*args)
    except Exception as error:
        record_failure(Path(folder), error)  # before closing the connection, which makes the others fail
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
