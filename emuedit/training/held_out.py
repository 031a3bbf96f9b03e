"""The loss on held-out pairs: per task and per quarter of the timesteps, at fixed noise."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import is_sharded
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED, NoiseDraws, draw_noise
from emuedit.training.trainable_editor import TrainableEditor
from emuedit.training.training_error import BadPairsError

if TYPE_CHECKING:
    from accelerate import Accelerator

PAIRS_PER_TASK = 8
N_TIME_BUCKETS = 4


@torch.no_grad()
def held_out_loss(editor: TrainableEditor, cache: LatentCache, accelerator: Accelerator) -> dict[str, float]:
    """Unweighted loss on the first held-out pairs of every task. All processes call it and get equal results.

    `held_out.<task>` per task, `held_out`: their mean, `held_out.t0` to `held_out.t3` per quarter of the timesteps, from low to
    high noise. Timesteps are stratified over all pairs of a task, independent of image sizes. Tasks are distributed over the
    processes, except with FSDP, where every forward pass needs all processes. Raises BadPairsError for a loss that is not finite.
    """
    rank, world_size = (0, 1) if is_sharded(accelerator) else (accelerator.process_index, accelerator.num_processes)
    n_timesteps = editor.parts.scheduler.config.num_train_timesteps
    losses: dict[str, list[tuple[int, float, str]]] = {}  # task -> (time bucket, loss, id) of every pair
    rows_of = {name: (cache.held_out.task == row).nonzero()[0][:PAIRS_PER_TASK] for row, name in enumerate(cache.task_names)}
    for task in [name for name, rows in rows_of.items() if len(rows)][rank::world_size]:
        losses[task] = []
        timesteps, n_done = _draw((len(rows_of[task]), 1, 1, 1), n_timesteps, task).t, 0
        for number, rows in enumerate(cache.by_bucket(cache.held_out, rows_of[task])):
            batch = cache.batch(cache.held_out, rows, rows < 0).to(editor.device)
            draws = _draw(tuple(batch.target.shape), n_timesteps, task, *([number] if number else []))
            draws = replace(draws, t=timesteps[n_done : n_done + len(rows)])
            n_done += len(rows)
            with accelerator.autocast():
                values = editor(batch, draws, UNWEIGHTED, weight_timesteps=False).total(UNWEIGHTED).float().tolist()
            losses[task] += zip((draws.t * N_TIME_BUCKETS // n_timesteps).tolist(), values, batch.ids, strict=True)
    if world_size > 1:
        from accelerate.utils import gather_object

        losses = {task: values for part in gather_object([losses]) for task, values in part.items()}
    return _summarize(losses)


def _draw(shape: tuple[int, ...], n_timesteps: int, *keys: str | int) -> NoiseDraws:
    return draw_noise(shape, n_timesteps, NO_DROPOUT, UNWEIGHTED.power_at(0.0), "held out", *keys)


def _summarize(losses: dict[str, list[tuple[int, float, str]]]) -> dict[str, float]:
    metrics, by_time = {}, defaultdict(list)
    for task in losses:
        metrics[f"held_out.{task}"] = mean = _mean([loss for _, loss, _ in losses[task]])
        if not math.isfinite(mean):
            bad = tuple(pair_id for _, loss, pair_id in losses[task] if not math.isfinite(loss))
            raise BadPairsError(f"want a finite held-out loss, got {mean} for the task {task}", bad)
        for bucket, loss, _ in losses[task]:
            by_time[bucket].append(loss)
    metrics |= {f"held_out.t{bucket}": _mean(values) for bucket, values in sorted(by_time.items())}
    return metrics | ({"held_out": _mean([metrics[f"held_out.{task}"] for task in losses])} if losses else {})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
