"""Training of the toy models. The same command resumes; a killed run loses at most a minute."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emuedit.progress import Progress
from emuedit.runtime import Runtime
from emuedit.training.optim.ema import EmaSettings
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization, check_recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_EVERY_STEPS = 20


@dataclass(frozen=True)
class Recipe:
    """The settings of a training. The learning rate has a warm-up, a plateau, and a linear decay to zero."""

    steps: int
    batch: int
    lr: float
    warmup_steps: int = 100
    decay_share: float = 0.35  # of the steps
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


def device() -> torch.device:
    """Device of the trainings: the GPU if there is one."""
    return Runtime.choose().torch_device


def autocast() -> torch.autocast:
    """Mixed precision if it is faster on this machine."""
    return Runtime.choose().autocast()


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    scratch: Path,
    save_every_s: float = 60.0,
    accelerator: Accelerator | None = None,
) -> nn.Module:
    """Minimise `loss_at(step)` and return `model` with the averaged (EMA) weights, on the CPU.

    `loss_at` derives its batch only from the step number, so a resumed run gets the same data; with several processes each
    computes its shard, through the model as wrapped by `accelerator`, which averages the gradients. State goes to `scratch`,
    losses to `scratch/stats.jsonl`. Only the number of steps may change when a run is resumed; other changes raise
    OptimizationError.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    model.to(device())
    main = accelerator is None or accelerator.is_main_process
    if main:
        check_recipe(scratch / "recipe.json", asdict(recipe), may_change=("steps",))
    optimization = Optimization(
        model,
        LrSchedule(recipe.steps, recipe.lr, recipe.warmup_steps, recipe.decay_share),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        betas=(0.9, 0.99),
        ema=EmaSettings(recipe.ema_decay),
        save_frozen=True,  # DINO's teacher is frozen, but changes
    )
    optimization.resume(scratch / STATE_FILE)
    model.train()
    saved_at, mean_loss, first = time.monotonic(), math.nan, optimization.step
    with Progress(scratch.name, recipe.steps, "step", first) as progress:
        while optimization.step < recipe.steps:
            step, lr = optimization.step, optimization.rate
            torch.manual_seed(step)
            loss = loss_at(step)
            loss.backward()
            value = float(loss.detach() if accelerator is None else accelerator.reduce(loss.detach(), "mean"))
            if not math.isfinite(value):
                raise FloatingPointError(f"{scratch.name}: loss is {value} at step {step}; lower the rate and resume")
            optimization.update()
            if not main:
                continue
            mean_loss = value if step == first else 0.98 * mean_loss + 0.02 * value
            progress.advance(note=f"loss {mean_loss:.4f}")
            if step % LOG_EVERY_STEPS == 0:
                with (scratch / "stats.jsonl").open("a") as stats:
                    stats.write(json.dumps({"step": step, "loss": mean_loss, "lr": lr, "time": time.time()}) + "\n")
            if time.monotonic() - saved_at > save_every_s:
                optimization.save(scratch / STATE_FILE)
                saved_at = time.monotonic()
    if main:
        optimization.save(scratch / STATE_FILE)
    optimization.use_average()
    return model.cpu().eval()
