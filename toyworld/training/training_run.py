"""The one training loop of the foundation models. The same command resumes; a killed run loses a minute."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emuedit.runtime import Runtime
from emuedit.training.distributed import ProcessGroup


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of. The rate rises, holds, and falls linearly to zero over the last part."""

    steps: int
    batch: int
    lr: float
    warmup_steps: int = 100
    decay_share: float = 0.35  # of the steps
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate at a step: warm-up, plateau, linear decay (Hägele et al. 2024, arXiv 2405.18392)."""
    up = min(1.0, (step + 1) / recipe.warmup_steps)
    down = min(1.0, (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps))
    return recipe.lr * up * down


def device() -> torch.device:
    """Where the trainings run: the GPU if there is one."""
    return Runtime.choose().torch_device


def bf16() -> torch.autocast:
    """Mixed precision there: on a CPU too, convolutions and products take half the time."""
    return torch.autocast(device().type, torch.bfloat16)


def _check_recipe(old: dict[str, float], new: dict[str, float], scratch: Path) -> None:
    """The number of steps may change on the way (the fall of the rate moves with it); nothing else may."""
    other = sorted(key for key in new if key != "steps" and old.get(key) != new[key])
    if other:
        raise ValueError(f"{scratch} was begun with another recipe ({', '.join(other)}); delete it to train anew")


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    scratch: Path,
    save_every_s: float = 60.0,
    crew: ProcessGroup = ProcessGroup(),  # noqa: B008
) -> nn.Module:
    """Minimise `loss_at(step)` and return `model` holding the averaged (EMA) weights.

    The model trains on `device()` and comes back on the CPU. `loss_at` draws its own batch from the step number alone,
    so a resumed run sees the data it would have seen; of several processes, each its share.
    State goes to `scratch/state.pt` by atomic rename, losses to `scratch/stats.jsonl`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    state_file = scratch / "state.pt"
    model.to(device())
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    first = 0
    if state_file.exists():
        _check_recipe(json.loads((scratch / "recipe.json").read_text()), asdict(recipe), scratch)
        state = torch.load(state_file, map_location=device(), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    if crew.leads:
        (scratch / "recipe.json").write_text(json.dumps(asdict(recipe)))

    def save(step: int) -> None:
        beside = state_file.with_suffix(".tmp")
        held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(held, beside)
        beside.replace(state_file)

    model.train()
    saved_at, seen, steps = time.monotonic(), 0.0, range(first, recipe.steps)
    bar = tqdm(steps, scratch.name, recipe.steps, initial=first, mininterval=5, disable=not crew.leads)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        torch.manual_seed(step)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss_now = crew.averaged(loss, weights, torch.bfloat16)
        if not math.isfinite(loss_now):
            raise FloatingPointError(f"{scratch.name}: loss is {loss_now} at step {step}; lower the rate and resume")
        nn.utils.clip_grad_norm_(weights, recipe.clip_norm)
        optimizer.step()
        _follow(average, model.state_dict(), min(recipe.ema_decay, (1 + step) / (10 + step)))
        seen = loss_now if step == first else 0.98 * seen + 0.02 * loss_now
        if step % 20 == 0 and crew.leads:
            bar.set_postfix(loss=f"{seen:.4f}", refresh=False)
            with (scratch / "stats.jsonl").open("a") as stats:
                stats.write(json.dumps({"step": step, "loss": seen, "lr": rate(step, recipe), "time": time.time()}) + "\n")
        if time.monotonic() - saved_at > save_every_s and crew.leads:
            save(step + 1)
            saved_at = time.monotonic()
    if crew.leads:
        save(recipe.steps)
    model.load_state_dict(average)
    return model.cpu().eval()


@torch.no_grad()
def _follow(average: dict[str, Tensor], weights: dict[str, Tensor], decay: float) -> None:
    """The exponential moving average of what is a number; counters are copied."""
    for name, value in weights.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)
