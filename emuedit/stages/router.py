"""Stage `router`: fine-tune a T5 that predicts the task of an instruction. A killed run resumes after the last finished epoch.

In: `data/instructions`, the world's T5. Out: `models/router`: the classifier as transformers saves it, `metrics.json` on held-out
captions, `stats.jsonl`, `summary.json`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from emuedit import config
from emuedit.data.dependencies import work_key
from emuedit.data.publish import Summary, publish, read_folder, scratch_folder
from emuedit.data.records import Instruction
from emuedit.editor import task_predictor
from emuedit.editor.task_predictor import TaskPredictor
from emuedit.progress import Progress
from emuedit.runtime import Runtime, rng, seed_for
from emuedit.stages import stage_main
from emuedit.tasks import TASKS
from emuedit.tracking import Tracker
from emuedit.training.optimization import STATE_FILE, Optimization
from emuedit.training.schedule import Schedule

IN, OUT = "data/instructions", "models/router"
HEADLINE = "trained on {trained} instructions, {correct} of {held_out} held-out ones right"
_BINS = 10

LabelledText = tuple[str, str]
"""An instruction and its task."""


class RouterError(ValueError):
    """Raised for instructions that no task predictor can be trained on."""


class RouterParams(config.Params):
    """Params of the stage."""

    world: config.World
    """The world; only its `t5` is used."""
    epochs: int = Field(ge=1)
    """Passes over the instructions."""
    lr: float = Field(gt=0)
    """Highest learning rate; it falls linearly to zero. For a trained T5 such as google/flan-t5-xl: 1.0e-4."""
    device: str = "auto"
    """Where it trains: auto, cpu, cuda or mps."""
    batch_size: int = Field(64, ge=1)
    """Instructions per step."""
    warmup_steps: int = Field(30, ge=1)
    """Steps in which the rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_tokens: int = Field(32, ge=4)
    """Longest instruction in tokens; a longer one is cut."""
    held_out_share: float = Field(0.1, gt=0, lt=1)
    """Share of the captions whose instructions are kept from training."""
    seed: int = Field(0, ge=0)
    """Seed of the head, the order and the dropout."""


def run(params: RouterParams, root: Path) -> Summary:
    """Train epoch by epoch, each saved in scratch, measure, publish to `models/router`."""
    base = config.resolve_path(params.world.t5, root)
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"t5": params.world.t5}
    scratch = scratch_folder(root, "router", work_key("router", recorded, root, base))
    rows = ((row.caption_id, row.text, row.task) for row in read_folder(root / IN, Instruction))
    training, held_out = split(rows, params)
    present = {task for _, task in training}
    tasks = [task.name for task in TASKS if task.name in present]
    if len(tasks) < 2 or not held_out:
        raise RouterError(f"want instructions of two tasks, and some to hold out; got {tasks} and {len(held_out)} held out")
    device = Runtime.choose(params.device, "float32").device
    predictor = task_predictor.from_t5(base, tasks, params.max_tokens, device, params.seed)
    with Tracker(scratch, "router", recorded) as tracker:
        train(predictor, training, params, scratch, tracker)
        metrics = measure(predictor, held_out, {text for text, _ in training})
        tracker.log(params.epochs, **{name: value for name, value in metrics.items() if isinstance(value, float)})
    predictor.save(scratch)
    (scratch / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    correct = round(metrics["accuracy"] * len(held_out))
    counts = {"trained": len(training), "held_out": len(held_out), "correct": correct}
    return publish(scratch, root / OUT, "router", recorded, counts)


def split(instructions: Iterable[tuple[str, str, str]], params: RouterParams) -> tuple[list[LabelledText], list[LabelledText]]:
    """(caption id, text, task) -> (text, task) to train on and to hold out: a caption is on one side, chosen by its id."""
    training: list[LabelledText] = []
    held_out: list[LabelledText] = []
    for caption_id, text, task in instructions:
        is_held_out = seed_for("router", "held_out", caption_id) / 2**63 < params.held_out_share
        (held_out if is_held_out else training).append((text, task))
    return training, held_out


def train(predictor: TaskPredictor, training: list[LabelledText], params: RouterParams, scratch: Path, tracker: Tracker) -> None:
    """Cross-entropy of the task. Order and dropout depend on (seed, epoch); the state is saved after every epoch."""
    model, device = predictor.model, predictor.model.device
    label = {task: i for i, task in enumerate(predictor.tasks)}
    per_epoch = -(-len(training) // params.batch_size)
    n_steps = params.epochs * per_epoch
    optimization = Optimization(
        model,
        Schedule(n_steps, params.lr, params.warmup_steps, decay_share=1.0),
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        betas=(0.9, 0.999),
    )
    optimization.resume(scratch / STATE_FILE)
    with Progress("router", n_steps, "step", optimization.step) as progress:
        for epoch in range(optimization.step // per_epoch, params.epochs):
            order = rng("router", "order", params.seed, epoch).permutation(len(training)).tolist()
            losses: list[Tensor] = []
            model.train()
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed_for("router", "dropout", params.seed, epoch))
                for start in range(0, len(order), params.batch_size):
                    batch = [training[i] for i in order[start : start + params.batch_size]]
                    labels = torch.tensor([label[task] for _, task in batch], device=device)
                    loss = F.cross_entropy(predictor.logits([text for text, _ in batch]), labels)
                    loss.backward()
                    optimization.update()
                    losses.append(loss.detach())
                    progress.advance()
            mean_loss = float(torch.stack(losses).mean())
            if not torch.isfinite(torch.tensor(mean_loss)):
                raise RouterError(f"want a finite loss, got {mean_loss} in epoch {epoch}; lower router.lr in params.yaml")
            tracker.log(epoch, loss=mean_loss)
            optimization.save(scratch / STATE_FILE)


def measure(predictor: TaskPredictor, held_out: list[LabelledText], seen: set[str]) -> dict[str, Any]:
    """Accuracy overall, per task and on texts that training never saw (None without any), and confusion[true][predicted].

    Also the expected calibration error over ten bins: the mean distance of probability and accuracy (Guo et al. 2017,
    arXiv 1706.04599).
    """
    probabilities = predictor.probabilities([text for text, _ in held_out])
    confidence, labels = probabilities.max(-1)
    predictions = [predictor.tasks[i] for i in labels.tolist()]
    correct = torch.tensor([guess == task for guess, (_, task) in zip(predictions, held_out, strict=True)]).float()
    is_new = torch.tensor([text not in seen for text, _ in held_out])
    confusion: dict[str, dict[str, int]] = {}
    for prediction, (_, task) in zip(predictions, held_out, strict=True):
        row = confusion.setdefault(task, {})
        row[prediction] = row.get(prediction, 0) + 1
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    gaps = [(correct[bins == b].mean() - confidence[bins == b].mean()).abs() * (bins == b).float().mean() for b in bins.unique()]
    return {
        "accuracy": float(correct.mean()),
        "accuracy_new_texts": float(correct[is_new].mean()) if is_new.any() else None,
        "calibration_error": float(torch.stack(gaps).sum()),
        "n": len(held_out),
        "n_new_texts": int(is_new.sum()),
        "tasks": {task: row.get(task, 0) / sum(row.values()) for task, row in sorted(confusion.items())},
        "confusion": {task: dict(sorted(row.items())) for task, row in sorted(confusion.items())},
    }


if __name__ == "__main__":
    stage_main("router")
