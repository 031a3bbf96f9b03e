"""The batches of one process, prepared one step ahead in a thread. They depend only on (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from emuedit.training.batches.batch import Batch
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import n_passes, shard
from emuedit.training.loss import NoiseDraws, draw_noise
from emuedit.training.train_settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

MicroBatch = tuple[Batch, NoiseDraws]
"""The samples and random draws of one forward pass."""


class BatchFeed:
    """`feed.step(n)` returns this process's micro batches of step n. Context manager that ends its thread."""

    def __init__(
        self,
        cache: LatentCache,
        settings: TrainSettings,
        n_timesteps: int,
        accelerator: Accelerator,
        tokenized: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        """`tokenized` adds the tokens for trained text encoders to a batch.

        Raises ValueError for a batch that processes and accumulation steps cannot split evenly.
        """
        self.cache, self.settings, self.n_timesteps, self.device = cache, settings, n_timesteps, accelerator.device
        self._tokenized = tokenized
        self.order = cache.order(
            settings.batch_size, settings.task_balance, settings.seed, settings.task_weights, settings.replay_share
        )
        rows = range(settings.batch_size)[shard(settings.batch_size, accelerator.process_index, accelerator.num_processes)]
        n = n_passes(settings.batch_size, settings.accumulation_steps, accelerator.num_processes)
        parts = [shard(len(rows), part, n) for part in range(n)]
        self.micro_batches = [slice(rows.start + part.start, rows.start + part.stop) for part in parts]
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[list[MicroBatch]]] | None = None

    def __enter__(self) -> BatchFeed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.shutdown(cancel_futures=True)

    def step(self, step: int) -> list[MicroBatch]:
        """The micro batches of a step; starts preparing the next step."""
        prepared = self._next[1] if self._next and self._next[0] == step else self._executor.submit(self._make, step)
        micro_batches = prepared.result()
        if step + 1 < self.settings.steps:
            self._next = step + 1, self._executor.submit(self._make, step + 1)
        return micro_batches

    def pair_ids(self, step: int) -> list[str]:
        """Ids of all pairs of a step, including those of other processes."""
        positions, _ = self.order.batch(step)
        return list(self.cache.train.ids(positions))

    def _make(self, step: int) -> list[MicroBatch]:
        settings = self.settings
        positions, flip = self.order.batch(step)
        batches = [
            self.cache.batch(self.cache.train, positions[rows], (flip & settings.flip)[rows]) for rows in self.micro_batches
        ]
        shape = (settings.batch_size, *batches[0].target.shape[1:])
        power = settings.loss_weights.power_at(step / settings.steps)
        sampling = settings.loss_weights.timestep_sampling
        keys = ("train", settings.seed, step)
        draws = draw_noise(shape, self.n_timesteps, settings.dropout, power, *keys, timestep_sampling=sampling)
        return [
            (self._tokenized(batch).to(self.device), draws.rows(rows).to(self.device))
            for batch, rows in zip(batches, self.micro_batches, strict=True)
        ]
