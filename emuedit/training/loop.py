"""The training loop of the editor: step, EMA, log, evaluate, save, stop. The same command resumes it.

All randomness derives from (seed, step), so a resumed run sees the batches it would have seen.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from emuedit.progress import Progress
from emuedit.tasks import TASKS
from emuedit.tracking import Tracker
from emuedit.training.distributed import TrainingProcess
from emuedit.training.latent_cache import LatentCache
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED, draw_noise
from emuedit.training.optimization import STATE_FILE, Optimization
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor

HELD_OUT_PER_TASK = 8


class TrainingError(RuntimeError):
    """Raised when training cannot go on."""


def train_loop(
    editor: TrainableEditor, cache: LatentCache, settings: TrainSettings, scratch: Path, process: TrainingProcess
) -> None:
    """Train until `settings.steps`. Afterwards the editor holds the averaged weights, frozen."""
    editor.prepare()
    optimization = Optimization(
        editor,
        settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        ema_decay=settings.ema_decay,
        lr_mult=settings.lr_mult,
    )
    optimization.resume(scratch / STATE_FILE, editor.device)
    first = optimization.step
    gradient_dtype = getattr(torch, settings.dtype)
    main = process.is_main_process
    with (
        Tracker(scratch, "train", settings.model_dump(mode="json")) if main else nullcontext() as tracker,
        Progress("train", settings.steps, "step", first) if main else nullcontext() as progress,
    ):
        saved_at = logged_at = time.monotonic()
        while optimization.step < settings.steps:
            # Forward, backward, and the mean over processes
            step, lr = optimization.step, optimization.rate
            loss, ids = _batch_loss(editor, cache, settings, step, process)
            loss.backward()
            value = process.average_gradients(loss, optimization.parameters.values(), gradient_dtype)
            if not math.isfinite(value):
                raise _not_finite(value, step, ids, scratch)

            # Update weights and EMA
            norm = optimization.update()
            if tracker is None or progress is None:
                continue

            # Log, evaluate, save
            done, last = optimization.step, optimization.step == settings.steps
            progress.advance(note=f"loss {value:.4f}")
            if done % settings.log_every_steps == 0 or last:
                n_steps = min(settings.log_every_steps, done - first)
                speed = settings.batch_size * n_steps / (time.monotonic() - logged_at)
                logged_at = time.monotonic()
                tracker.log(done, loss=value, lr=lr, grad_norm=norm.item(), samples_per_second=speed)
            if done % settings.eval_every_steps == 0 or last:
                with optimization.averaged():
                    tracker.log(done, **held_out_loss(editor, cache, settings))
                logged_at = time.monotonic()
            if time.monotonic() - saved_at >= settings.save_every_s or last:
                optimization.save(scratch / STATE_FILE)
                saved_at = time.monotonic()
    optimization.use_average()
    editor.eval().requires_grad_(False)


@torch.no_grad()
def held_out_loss(editor: TrainableEditor, cache: LatentCache, settings: TrainSettings) -> dict[str, float]:
    """Unweighted loss on the first held-out pairs of every task, at fixed timesteps and noise; and its mean over tasks.

    Raises TrainingError for a loss that is not finite.
    """
    losses: dict[str, float] = {}
    for task in TASKS:
        rows = (cache.held_out.task == task.index).nonzero()[0][:HELD_OUT_PER_TASK]
        if not len(rows):
            continue
        batch = cache.batch(cache.held_out, rows, rows < 0).to(editor.device)
        shape, n_timesteps = tuple(batch.target.shape), editor.base_model.scheduler.config.num_train_timesteps
        draws = draw_noise(shape, n_timesteps, NO_DROPOUT, UNWEIGHTED.power_at(0.0), "held out", task.name)
        with settings.autocast(editor.device):
            loss = editor.losses(batch, draws, UNWEIGHTED).mean().item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"want a finite held-out loss, got {loss} for the task {task.name}; look at its pairs, or lower train.lr"
            )
        losses[f"held_out.{task.name}"] = loss
    return losses | ({"held_out": sum(losses.values()) / len(losses)} if losses else {})


def _batch_loss(
    editor: TrainableEditor, cache: LatentCache, settings: TrainSettings, step: int, process: TrainingProcess
) -> tuple[Tensor, list[str]]:
    """Mean loss of this process's shard of the batch, and the ids of the whole batch."""
    positions, flip = cache.choose(settings.batch_size, settings.task_balance, settings.seed, step)
    shard = process.shard(settings.batch_size)
    batch = cache.batch(cache.train, positions[shard], (flip & settings.flip)[shard]).to(editor.device)
    shape = (settings.batch_size, *batch.target.shape[1:])
    n_timesteps = editor.base_model.scheduler.config.num_train_timesteps
    power = settings.loss_weights.power_at(step / settings.steps)
    draws = draw_noise(shape, n_timesteps, settings.dropout, power, "train", settings.seed, step).rows(shard)
    with settings.autocast(editor.device):
        losses = editor.losses(batch, draws, settings.loss_weights)
    return losses.mean(), cache.train.pair_ids[positions].tolist()


def _not_finite(value: float, step: int, ids: list[str], scratch: Path) -> TrainingError:
    """The error for a loss that is not finite, after the ids of its pairs were written down."""
    (scratch / "bad-batch.json").write_text(json.dumps({"step": step, "pair_ids": ids}, indent=1))
    return TrainingError(
        f"want a finite loss, got {value} at step {step}; its pairs' ids are in {scratch}/bad-batch.json: look at them, "
        "or lower train.lr"
    )
