"""Station `router`: instructions -> a T5 that tells the task of an instruction. The same command goes on after the last epoch.

In: `data/instructions`, the world's T5. Out: `models/router`: the classifier as transformers saves it, `metrics.json` on
held-out captions, `stats.jsonl`, `summary.json`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from emuedit import config
from emuedit.data.publish import Summary, fingerprint, publish, read_folder, scratch_folder
from emuedit.data.records import Instruction
from emuedit.editor import task_predictor
from emuedit.editor.task_predictor import TaskPredictor
from emuedit.runtime import Runtime, rng, seed_for
from emuedit.tasks import TASKS
from emuedit.tracking import Tracker

IN, OUT = "data/instructions", "models/router"
_STATE = ".state.pt"  # a hidden file stays in scratch
_BINS = 10


class RouterError(ValueError):
    """Raised for instructions that no router can be trained on."""


class RouterParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world; only its `t5` matters here."""
    device: str
    """auto, cpu, cuda or mps."""
    epochs: int = Field(ge=1)
    """Times that every instruction is seen."""
    batch: int = Field(ge=1)
    """Instructions a step."""
    lr: float = Field(gt=0)
    """Highest learning rate; it falls linearly to zero."""
    warmup_steps: int = Field(ge=1)
    """Steps in which the rate rises."""
    weight_decay: float = Field(ge=0)
    """Of AdamW."""
    clip_norm: float = Field(gt=0)
    """Longest gradient."""
    max_tokens: int = Field(ge=4)
    """Longest instruction, tokens; what is longer is cut."""
    held_out_share: float = Field(gt=0, lt=1)
    """Share of the captions whose instructions are kept from training."""
    seed: int = Field(ge=0)
    """Seed of the head, the order and the dropout."""


def run(params: RouterParams, root: Path) -> Summary:
    """Train epoch by epoch, each kept in scratch, measure, publish to `models/router`."""
    base = config.resolve_path(params.world.t5, root)
    knobs = params.model_dump(mode="json", exclude={"world", "device"}) | {"t5": params.world.t5}
    inputs = [root / IN / "summary.json", Path(__file__), Path(task_predictor.__file__)] + (
        [Path(base)] if Path(base).exists() else []
    )
    scratch = scratch_folder(root, "router", fingerprint(knobs, *inputs))
    told, held = split(((one.caption_id, one.text, one.task) for one in read_folder(root / IN, Instruction)), params)
    present = {task for _, task in told}
    tasks = [task.name for task in TASKS if task.name in present]
    if len(tasks) < 2 or not held:
        raise RouterError(f"want instructions of two tasks, and some to hold out; got {tasks} and {len(held)} held out")
    router = task_predictor.start(base, tasks, params.max_tokens, Runtime.choose(params.device).device, params.seed)
    with Tracker(scratch, "router", knobs) as tracker:
        train(router, told, params, scratch, tracker)
        metrics = measure(router, held, {text for text, _ in told})
        tracker.log(params.epochs, **{name: value for name, value in metrics.items() if isinstance(value, float)})
    router.save(scratch)
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    correct = round(metrics["accuracy"] * len(held))
    return publish(scratch, root / OUT, "router", knobs, {"trained": len(told), "held_out": len(held), "correct": correct})


def split(
    instructions: Iterable[tuple[str, str, str]], params: RouterParams
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(caption id, text, task) -> (text, task) to train on, and those held out: a caption is on one side, chosen by its id."""
    told: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for caption_id, text, task in instructions:
        kept_away = seed_for("router", "held_out", caption_id) / 2**63 < params.held_out_share
        (held if kept_away else told).append((text, task))
    return told, held


def train(router: TaskPredictor, told: list[tuple[str, str]], params: RouterParams, scratch: Path, tracker: Tracker) -> None:
    """Cross-entropy of the task, AdamW. Order and dropout depend on (seed, epoch); the state is saved after every epoch."""
    model, device = router.model, router.model.device
    label = {task: i for i, task in enumerate(router.tasks)}
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=params.lr, weight_decay=params.weight_decay)
    per_epoch = -(-len(told) // params.batch)
    first = _resumed(scratch / _STATE, model, optimizer)
    bar = tqdm(total=params.epochs * per_epoch, initial=first * per_epoch, unit="step", desc="router")
    for epoch in range(first, params.epochs):
        order = rng("router", "order", params.seed, epoch).permutation(len(told)).tolist()
        losses: list[Tensor] = []
        model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed_for("router", "dropout", params.seed, epoch))
            for n in range(per_epoch):
                step = epoch * per_epoch + n
                rise, fall = (step + 1) / params.warmup_steps, 1 - step / (params.epochs * per_epoch)
                optimizer.param_groups[0]["lr"] = params.lr * min(1.0, rise, fall)
                some = [told[i] for i in order[n * params.batch : (n + 1) * params.batch]]
                wanted = torch.tensor([label[task] for _, task in some], device=device)
                loss = F.cross_entropy(router.logits([text for text, _ in some]), wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, params.clip_norm)
                optimizer.step()
                losses.append(loss.detach())
                bar.update()
        mean = float(torch.stack(losses).mean())
        if not torch.isfinite(torch.tensor(mean)):
            raise RouterError(f"want a finite loss, got {mean} in epoch {epoch}; lower router.lr in params.yaml")
        tracker.log(epoch, loss=mean)
        partial = scratch / f"{_STATE}.part"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}, partial)
        partial.replace(scratch / _STATE)
    bar.close()


def _resumed(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> int:
    """The epoch to go on with; 0 where nothing was saved."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def measure(router: TaskPredictor, held: list[tuple[str, str]], seen: set[str]) -> dict[str, Any]:
    """Accuracy over all, per task and on texts that training never saw (None if there are none), confusion[true][guessed].

    Also the expected calibration error over ten bins: the mean distance of probability and accuracy (Guo et al. 2017,
    arXiv 1706.04599).
    """
    probabilities = router.probabilities([text for text, _ in held])
    best, which = probabilities.max(-1)
    guesses = [router.tasks[i] for i in which.tolist()]
    right = torch.tensor([guess == task for guess, (_, task) in zip(guesses, held, strict=True)]).float()
    new = torch.tensor([text not in seen for text, _ in held])
    confusion: dict[str, dict[str, int]] = {}
    for guess, (_, task) in zip(guesses, held, strict=True):
        row = confusion.setdefault(task, {})
        row[guess] = row.get(guess, 0) + 1
    bins = (best * _BINS).long().clamp_max(_BINS - 1)
    gaps = [(right[bins == b].mean() - best[bins == b].mean()).abs() * (bins == b).float().mean() for b in bins.unique()]
    return {
        "accuracy": float(right.mean()),
        "accuracy_new_texts": float(right[new].mean()) if new.any() else None,
        "calibration_error": float(torch.stack(gaps).sum()),
        "n": len(held),
        "n_new_texts": int(new.sum()),
        "tasks": {task: row.get(task, 0) / sum(row.values()) for task, row in sorted(confusion.items())},
        "confusion": {task: dict(sorted(row.items())) for task, row in sorted(confusion.items())},
    }


if __name__ == "__main__":
    run(config.load(RouterParams, "router"), Path())
