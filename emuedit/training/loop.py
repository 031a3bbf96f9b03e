"""The training loop of the editor: step, EMA, log, evaluate, save, stop. The same command resumes it.

All randomness derives from (seed, step), so a resumed run gets the same batches, with any number of processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from emuedit.progress import Progress
from emuedit.tracking import Tracker
from emuedit.training.batch_feed import BatchFeed
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.cuda_graph import GraphedPasses
from emuedit.training.distributed import TrainingProcesses, find_unused_weights, is_sharded, n_passes
from emuedit.training.held_out import held_out_loss
from emuedit.training.loss import LossParts, NoiseDraws
from emuedit.training.optim.ema import EmaSettings
from emuedit.training.optim.optimization import STATE_FILE, Optimization
from emuedit.training.resources import SpeedMeter, count_flops
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor
from emuedit.training.training_checks import check_processes
from emuedit.training.training_error import BadPairsError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

_SAVE_PAUSES = 20
"""The interval between saves is at least this multiple of a save's duration, so saving costs at most 5 %."""


@dataclass(frozen=True)
class Preview:
    """Sample edits during training, when the held-out loss is due and this time has passed."""

    every_s: float
    show: Callable[[int], dict[str, float]]
    """Called with the number of steps done, while the editor has the averaged weights; returns metrics."""
    check: Callable[[], None] = lambda: None
    """Raises an error now if the benchmark's judge cannot be loaded; the optional method `check` of the preview's function."""


class TrainLoop:
    """Training of an editor in this process, which may be one of several that train it together."""

    def __init__(
        self,
        editor: TrainableEditor,
        cache: LatentCache,
        settings: TrainSettings,
        scratch: Path,
        accelerator: Accelerator,
        preview: Preview | None = None,
    ) -> None:
        """State, statistics and previews go to `scratch`; an existing state is resumed."""
        self.editor, self.cache, self.settings, self.scratch = editor, cache, settings, scratch
        self.accelerator, self.preview = accelerator, preview
        self._flops_per_sample = count_flops(editor, cache, settings) if accelerator.is_main_process else 0
        self._is_sharded = is_sharded(accelerator)
        check_processes(settings, TrainingProcesses.of(accelerator), len(np.unique(cache.train.bucket)))
        self._n_passes = n_passes(settings.batch_size, settings.accumulation_steps, accelerator.num_processes)
        self._names: tuple[str, ...] = ()  # names of the loss and its parts
        self._graph = GraphedPasses(self._passes, accelerator.device) if settings.cuda_graph else None
        editor.prepare(accelerator.device, self._is_sharded)
        if editor.has_unused_weights:
            find_unused_weights(accelerator)
        self.optimization = Optimization(
            editor,
            settings.schedule,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            betas=(0.9, settings.adam_beta2),
            ema=EmaSettings(settings.ema_decay, settings.ema_device, getattr(torch, settings.ema_dtype)),
            lr_mult=settings.lr_mult,
            optimizer=settings.optimizer,
            accelerator=accelerator,
        )
        self.optimization.resume(scratch / STATE_FILE)
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []  # (step, loss and parts, gradient norm) not yet read
        self._tracker: Tracker | None = None
        self._saved_at = self._previewed_at = time.monotonic()
        self._save_took_s = 0.0

    def run(self) -> None:
        """Train until `settings.steps`. Afterwards the editor has the averaged weights (see also `TrainableEditor.finish`).

        Raises TrainingError for the first step whose loss or gradient norm is not finite, and for a held-out loss that is not.
        """
        settings, optimization, accelerator = self.settings, self.optimization, self.accelerator
        main, n_timesteps = accelerator.is_main_process, self.editor.parts.scheduler.config.num_train_timesteps
        check_every = 1 if accelerator.device.type == "cpu" else settings.log_every_steps  # avoid a GPU synchronisation per step
        with (
            Tracker(self.scratch, "train", settings.model_dump(mode="json")) if main else nullcontext() as self._tracker,
            Progress("train", settings.steps, "step", optimization.step) if main else nullcontext() as progress,
            BatchFeed(self.cache, settings, n_timesteps, accelerator, self._tokenized) as feed,
        ):
            speed = SpeedMeter(settings, self._flops_per_sample, accelerator, optimization.step) if main else None
            metrics = {"loss": math.nan}
            while optimization.step < settings.steps:
                # Forward, backward, and the mean over processes
                lr = optimization.rate
                losses = self._backward(feed)

                # Update weights and EMA
                norm = optimization.update(keep_gradients=self._graph is not None and self._graph.keeps_gradients)
                self._unchecked.append((optimization.step - 1, losses, norm))
                done, last = optimization.step, optimization.step == settings.steps
                is_logged = last or not done % settings.log_every_steps
                is_evaluated = last or not done % settings.eval_every_steps
                if is_logged or is_evaluated or len(self._unchecked) >= check_every:
                    metrics = self._check(feed)
                if progress is not None:
                    progress.advance(note=f"loss {metrics['loss']:.4f}" if math.isfinite(metrics["loss"]) else "")

                # Log, evaluate, save
                if is_logged and speed is not None:
                    self._log(**metrics, lr=lr, **speed.read(done))
                if is_evaluated:
                    self._evaluate()
                if is_logged:
                    self._save(last)
                if speed is not None and (is_logged or is_evaluated):
                    speed.restart(done)
        if self._graph is not None:  # free the graph and its memory, which includes the gradients
            self._graph = None
            optimization.optimizer.zero_grad(set_to_none=True)
        optimization.use_average()

    def _backward(self, feed: BatchFeed) -> Tensor:
        """Forward and backward passes of a step; returns the loss and its parts, averaged over all processes, [1 + parts]."""
        optimization, accelerator = self.optimization, self.accelerator
        micro_batches = feed.step(optimization.step)
        sums: list[Tensor] = []
        for number, (batch, draws) in enumerate(micro_batches, start=1):
            # Average gradients only in the last pass, except with FSDP, which would keep unsharded gradients on each GPU
            is_averaged = self._is_sharded or number == len(micro_batches)
            with nullcontext() if is_averaged else accelerator.no_sync(optimization.model):
                sums.append((self._graph or self._passes)(batch, draws))
        mean: Tensor = accelerator.reduce(torch.stack(sums).sum(0), "mean")
        return mean

    def _passes(self, batch: Batch, draws: NoiseDraws) -> Tensor:
        """Forward and backward pass of a micro batch; returns its share of the loss and of its parts, [1 + parts]."""
        weights, n = self.settings.loss_weights, self._n_passes
        parts: LossParts = self.optimization.model(batch, draws, weights)
        loss = parts.total(weights).mean() / n
        self.optimization.backward(loss)
        self._names = ("loss", *(f"loss.{name}" for name, part in parts._asdict().items() if part is not None))
        return torch.stack([loss.detach(), *(part.detach().mean() / n for part in parts if part is not None)])

    def _tokenized(self, batch: Batch) -> Batch:
        return self.editor.tokenized(batch, fixed_shape=self.settings.cuda_graph)

    def _check(self, feed: BatchFeed) -> dict[str, float]:
        """The latest loss, its parts and gradient norm by name. The first step with a value that is not finite stops the
        training, after the ids of its pairs were written to a file."""
        steps = [step for step, _, _ in self._unchecked]
        rows: list[list[float]] = torch.stack([losses for _, losses, _ in self._unchecked]).tolist()
        norms: list[float] = torch.stack([norm for _, _, norm in self._unchecked]).tolist()
        self._unchecked.clear()
        for step, (loss, *_), norm in zip(steps, rows, norms, strict=True):
            if not math.isfinite(loss):
                self._stop(f"want a finite loss, got {loss} at step {step}", step, feed.pair_ids(step))
            if not math.isfinite(norm) and self.settings.dtype != "float16":  # the gradient scaler skips such steps
                self._stop(f"want a finite norm of the gradient, got {norm} at step {step}", step, feed.pair_ids(step))
        return dict(zip(self._names, rows[-1], strict=True)) | {"grad_norm": norms[-1]}

    def _stop(self, problem: str, step: int, pair_ids: Sequence[str]) -> NoReturn:
        """Write the ids of the pairs with a problem, and stop the training. step: the step, or the number of steps done."""
        file = self.scratch / "bad-batch.json"
        file.write_text(json.dumps({"step": step, "pair_ids": list(pair_ids)}, indent=1))
        raise TrainingError(f"{problem}; inspect its pairs (ids in {file}), or lower train.lr")

    def _evaluate(self) -> None:
        """Held-out loss and, when due, sample edits, with the averaged weights."""
        done, preview = self.optimization.step, self.preview
        if preview and not self._agree(time.monotonic() - self._previewed_at >= preview.every_s):
            preview = None
        with self.optimization.averaged():
            try:
                self._log(**held_out_loss(self.editor, self.cache, self.accelerator))
            except BadPairsError as error:
                self._stop(str(error), done, error.pair_ids)
            if preview and (self.accelerator.is_main_process or self._is_sharded):
                self._log(**preview.show(done))
                self._previewed_at = time.monotonic()

    def _save(self, last: bool) -> None:
        every_s = self.settings.save_every_s
        pause_s = max(every_s, _SAVE_PAUSES * self._save_took_s) if every_s else 0.0
        if self._agree(time.monotonic() - self._saved_at >= pause_s or last):
            began = time.monotonic()
            if self.accelerator.is_main_process or self._is_sharded:
                self.optimization.save(self.scratch / STATE_FILE)
            self._saved_at = time.monotonic()
            self._save_took_s = self._saved_at - began

    def _agree(self, decision: bool) -> bool:
        """The main process's decision, broadcast to all, since clocks differ."""
        if not self._is_sharded:
            return decision
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([decision])[0])

    def _log(self, **metrics: float) -> None:
        if self._tracker is not None:
            self._tracker.log(self.optimization.step, **metrics)
