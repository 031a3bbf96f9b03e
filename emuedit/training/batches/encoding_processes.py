"""Encode the images of a latent cache in several processes, one per core or GPU, with the files of a single one.

The processes get the VAE from this one. A shard of pairs is encoded by one process, in the batches of `pair_encoding`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from emuedit import local_processes
from emuedit.models.text_to_image import TextToImageModel
from emuedit.processes import available_cores, visible_gpus
from emuedit.runtime import Runtime
from emuedit.training.batches.latent_files import EncodeShards, EncodingJob, encode_here
from emuedit.training.batches.pair_encoding import ImageEncoder

MIN_PAIRS = {"cpu": 2000, "cuda": 2000}
"""Device -> fewest missing pairs for which processes are started. Ours: on a CPU a pair of the toy world takes 0.03 s of a core,
the 730 pairs of its default 22 s, of which two processes save a few; a process that imports torch and diffusers takes 12 s.
For a GPU it was not measured."""


def in_processes(encoders: TextToImageModel, runtime: Runtime, n_training: int) -> EncodeShards:
    """An `EncodeShards` with as many processes as will train, `n_training`, but at most one per core or visible GPU.

    It encodes in this process, under the caller's autocast, if that is one process or fewer than MIN_PAIRS pairs are missing.
    Raises WorkerFailedError, which names the shard, if another process fails or dies.
    """
    return partial(_encode, encoders, runtime, min(n_training, _available(runtime.device)))


def _available(device: str) -> int:
    """Cores or visible GPUs of this machine; 1 for a numbered GPU and other devices."""
    if device == "cuda":
        return len(visible_gpus())
    return available_cores() if device == "cpu" else 1


def _encode(
    encoders: TextToImageModel, runtime: Runtime, processes: int, jobs: Sequence[EncodingJob]
) -> Generator[str, None, None]:
    processes = min(processes, len(jobs))
    if processes < 2 or not _are_many(jobs, MIN_PAIRS[runtime.device]):
        yield from encode_here(encoders, jobs)
        return
    build, by_name = partial(_build, _to_bytes(encoders), encoders.factor, runtime), {str(job.shard.path): job for job in jobs}
    with local_processes.start(processes, build, device=runtime.device) as group:
        for name, _ in group.do(by_name):
            yield by_name[name].key


def _are_many(jobs: Sequence[EncodingJob], n_pairs: int) -> bool:
    """Whether at least this many pairs are missing."""
    n = 0
    for job in jobs:
        n += len(job.missing())
        if n >= n_pairs:
            return True
    return False


def _to_bytes(encoders: TextToImageModel) -> bytes:
    """The VAE. Not as shared memory, of which containers have 64 MB."""
    buffer = io.BytesIO()
    torch.save(encoders.vae, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Work:
    """The work of a process."""

    encoder: ImageEncoder
    runtime: Runtime

    def __call__(self, job: EncodingJob, _: Callable[[float], None]) -> None:
        with self.runtime.autocast():
            job.run(self.encoder)


def _build(vae: bytes, factor: int, runtime: Runtime) -> _Work:
    module: Any = torch.load(io.BytesIO(vae), map_location=runtime.device, weights_only=False)
    return _Work(ImageEncoder(module, factor), runtime)
