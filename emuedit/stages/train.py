"""Station `train`: kept pairs -> an editor. The same command goes on where a killed one stopped, bit for bit.

In: `data/pairs` and what `data/dataset` mixed in (Pair), `data/dataset` (Verdict), the world's base_model. Out: `models/editor`, a
diffusers pipeline folder of the base_model's own class with `tasks/`, `stats.jsonl` and `summary.json`. What is trained: the whole
U-Net, the task table and, if asked, the text encoders.
"""

import json
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from emuedit import config
from emuedit.core import diffusion
from emuedit.data.publish import Summary, fingerprint, read_summary, scratch_folder, write_summary
from emuedit.editor import checkpoint
from emuedit.editor.unet import EditorUNet
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime, seed_for
from emuedit.tasks import TASKS
from emuedit.tracking import Tracker
from emuedit.training import distributed, latent_cache, loss
from emuedit.training.distributed import ProcessGroup
from emuedit.training.latent_cache import Cache
from emuedit.training.loss import Dropout, Weights
from emuedit.training.trainable_editor import TrainableEditor

PAIRS, DATASET, OUT = "data/pairs", "data/dataset", "models/editor"
HELD_OUT_PER_TASK = 8
NEW = ("net.unet.conv_in.", "net.unet.class_embedding.", "net.table.")


class TrainError(RuntimeError):
    """Raised when training cannot go on."""


class TrainParams(config.Params):
    """Knobs of the station."""

    world: config.World
    """The world; only its `base_model` matters here."""
    seed: int = Field(ge=0)
    """Seed of the task table, the order of pairs, times, noise and dropout."""
    device: str
    """auto, cpu, cuda or mps."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of the network's sums; weights and optimizer are float32, bfloat16 is autocast."""
    processes: int = Field(ge=0)
    """Processes that share every batch; 0: one a core on a CPU, else one."""
    steps: int = Field(ge=1)
    """Steps of the optimizer."""
    batch: int = Field(ge=1)
    """Pairs a step."""
    lr: float = Field(gt=0)
    """Highest learning rate."""
    lr_new: float = Field(gt=0)
    """Times `lr` for what the base_model had not: the first convolution, the class projection, the task table. Ours."""
    lr_text: float = Field(ge=0)
    """Times `lr` for the base_model's text encoders; 0: they stay as they are (InstructPix2Pix, Emu Edit)."""
    warmup_steps: int = Field(ge=0)
    """Steps in which the rate rises from zero."""
    decay_share: float = Field(ge=0, le=1)
    """Last share of the steps, in which the rate falls to zero."""
    decay: Literal["linear", "cosine"]
    """How it falls."""
    weight_decay: float = Field(ge=0)
    """Of AdamW."""
    clip_norm: float = Field(gt=0)
    """Longest gradient."""
    ema_decay: float = Field(ge=0, lt=1)
    """How slowly the published average follows the weights; it starts fast."""
    task_width: int = Field(ge=1)
    """D_v, numbers in a task embedding."""
    balance: float = Field(ge=0, le=1)
    """Tasks are drawn in proportion to (their pairs)^balance: 0 evenly, 1 as they come."""
    flip: bool
    """Mirror half of the pairs whose instruction has no side and no letters in it."""
    dropout: Dropout
    """How often a condition is left out."""
    weights: Weights
    """What counts how much."""
    held_out_share: float = Field(ge=0, lt=1)
    """Share of captions whose pairs are kept from training."""
    eval_every_steps: int = Field(ge=1)
    """Steps between two looks at the held-out loss of every task."""
    log_every_steps: int = Field(ge=1)
    """Steps between two lines of stats.jsonl."""
    save_every_s: float = Field(ge=0)
    """Seconds between two saves: what a kill may cost."""
    stored_dtype: Literal["float16", "float32"]
    """Number format of the published weights."""


def rate(step: int, params: TrainParams) -> float:
    """Learning rate at a step: warm-up, plateau, fall to zero (Hägele et al., arXiv 2405.18392, for the linear one)."""
    up = min(1.0, (step + 1) / max(1, params.warmup_steps))
    left = min(1.0, (params.steps - step) / max(1.0, params.decay_share * params.steps))
    down = left if params.decay == "linear" else 0.5 - 0.5 * float(torch.tensor(left * torch.pi).cos())
    return params.lr * up * down


def _adamw(weights: dict[str, nn.Parameter], params: TrainParams) -> torch.optim.AdamW:
    scales = {NEW: params.lr_new, ("text.",): params.lr_text}
    of = {name: next((scale for begin, scale in scales.items() if name.startswith(begin)), 1.0) for name in weights}
    groups = [
        {"params": [weight for name, weight in weights.items() if of[name] == scale], "scale": scale}
        for scale in sorted(set(of.values()))
    ]
    return torch.optim.AdamW(groups, lr=params.lr, betas=(0.9, 0.99), weight_decay=params.weight_decay, fused=True)


def _at_a_loss(value: float, step: int, ids: list[str], scratch: Path) -> TrainError:
    """The error for a loss that is no number, after the ids of its pairs were written down."""
    (scratch / "bad-batch.json").write_text(json.dumps({"step": step, "pair_ids": ids}, indent=1))
    return TrainError(
        f"want a finite loss, got {value} at step {step}; its pairs' ids are in {scratch}/bad-batch.json: look at them, "
        "or lower train.lr"
    )


def learn(pupil: TrainableEditor, cache: Cache, params: TrainParams, scratch: Path, crew: ProcessGroup) -> None:
    """The loop: step, EMA, log, save, stop. Afterwards the pupil holds the averaged weights."""
    device = pupil.base_model.device
    pupil.begin()
    weights = dict(pupil.named_parameters())
    optimizer = _adamw(weights, params)
    average = {name: value.detach().clone() for name, value in weights.items()}
    half = torch.autocast(device.type, torch.bfloat16, enabled=params.dtype == "bfloat16")
    state_file, first = scratch / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        pupil.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]

    def save(step: int) -> None:
        held = {"weights": pupil.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(held, state_file.with_suffix(".part"))
        state_file.with_suffix(".part").replace(state_file)

    def step_loss(step: int) -> tuple[Tensor, list[str]]:
        picked, flip = cache.pick(params.batch, params.balance, params.seed, step)
        mine = crew.share(params.batch)
        batch = cache.batch(cache.train, picked[mine], (flip & params.flip)[mine]).to(device)
        n_times, late = pupil.base_model.scheduler.config.num_train_timesteps, params.weights.late(step / params.steps)
        whole = (params.batch, *batch.target.shape[1:])
        draws = loss.draw(whole, n_times, params.dropout, late, "train", params.seed, step).of(mine)
        with half:
            each = pupil.losses(batch, draws, params.weights)
        return each.mean(), cache.train.pair_ids[picked].tolist()

    with Tracker(scratch, "train", params.model_dump(mode="json")) if crew.leads else nullcontext() as tracker:
        saved_at = logged_at = time.monotonic()
        steps = range(first, params.steps)
        bar = tqdm(steps, "train", params.steps, initial=first, unit="step", mininterval=2, disable=not crew.leads)
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = rate(step, params) * group["scale"]
            mean, ids = step_loss(step)
            optimizer.zero_grad(set_to_none=True)
            mean.backward()
            value = crew.averaged(mean, list(weights.values()), getattr(torch, params.dtype))
            if not math.isfinite(value):
                raise _at_a_loss(value, step, ids, scratch)
            norm = nn.utils.clip_grad_norm_(list(weights.values()), params.clip_norm)
            optimizer.step()
            decay = min(params.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, weight in weights.items():
                    average[name].lerp_(weight, 1 - decay)
            done = step + 1
            if tracker is None:
                continue
            if done % params.log_every_steps == 0 or done == params.steps:
                speed = params.batch * min(params.log_every_steps, done - first) / (time.monotonic() - logged_at)
                logged_at = time.monotonic()
                tracker.log(done, loss=value, lr=rate(step, params), grad_norm=norm.item(), samples_per_second=speed)
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            if done % params.eval_every_steps == 0 or done == params.steps:
                tracker.log(done, **held_out_loss(pupil, average, cache, half))
                logged_at = time.monotonic()
            if time.monotonic() - saved_at >= params.save_every_s or done == params.steps:
                save(done)
                saved_at = time.monotonic()
    pupil.load_state_dict(average, strict=False)
    pupil.eval().requires_grad_(False)


@torch.no_grad()
def held_out_loss(pupil: TrainableEditor, average: dict[str, Tensor], cache: Cache, half: torch.autocast) -> dict[str, float]:
    """Loss of the averaged weights on the first held-out pairs of every task, unweighted, at fixed times and noise."""
    now = {name: value.detach().clone() for name, value in pupil.named_parameters()}
    pupil.load_state_dict(average, strict=False)
    found: dict[str, float] = {}
    for task in TASKS:
        picked = (cache.held_out.task == task.index).nonzero()[0][:HELD_OUT_PER_TASK]
        if not len(picked):
            continue
        batch = cache.batch(cache.held_out, picked, picked < 0).to(pupil.base_model.device)
        shape, n_times = tuple(batch.target.shape), pupil.base_model.scheduler.config.num_train_timesteps
        draws = loss.draw(shape, n_times, loss.NEVER, loss.PLAIN.late(0.0), "held out", task.name)
        with half:
            each = pupil.losses(batch, draws, loss.PLAIN)
        found[f"held_out.{task.name}"] = each.mean().item()
    pupil.load_state_dict(now, strict=False)
    return found | ({"held_out": sum(found.values()) / len(found)} if found else {})


def run(params: TrainParams, root: Path) -> Summary:
    """Encode what is new, train from the last saved step, publish to `models/editor`."""
    runtime = Runtime.choose(params.device, params.dtype)
    judged = read_summary(root / DATASET)
    mixed = sorted(judged.params.get("mix", ()))  # pairs that were written with their verdicts tell of no mix
    data: dict[str, Any] = {"pairs": read_summary(root / PAIRS).shards, "dataset": judged.shards}
    data |= {"mixed": {folder: read_summary(root / folder).shards for folder in mixed}} if mixed else {}
    base = config.resolve_path(params.world.base_model, root)
    knobs = params.model_dump(mode="json", exclude={"world"}) | {"base_model": params.world.base_model}
    behind = [base] if Path(base).is_dir() else []
    modules = ("net", "pupil", "table", "loss", "batches", "checkpoint")
    code = {name: Path(__file__).parent / "editor" / f"{name}.py" for name in modules} | {"diffusion": Path(diffusion.__file__)}
    base_model = text_to_image.load(base, runtime.device)
    mark = fingerprint(data | {"base_model": params.world.base_model, "dtype": params.dtype}, *behind, code["batches"])
    latents = root / "scratch" / "latents" / mark
    with torch.autocast(runtime.device, torch.bfloat16, enabled=params.dtype == "bfloat16"):
        latent_cache.build([root / folder for folder in (PAIRS, *mixed)], root / DATASET, base_model, latents)
    cache = Cache(latents, params.held_out_share)
    scratch = scratch_folder(root, "train", fingerprint(knobs | {"data": data}, *behind, __file__, *code.values()))
    size = distributed.size_for(params.processes, params.batch, runtime.device)
    ProcessGroup(0, size).share(params.batch)  # an uneven batch is an error now, not in every process
    if size > 1:
        distributed.together(size, _join, params, base, latents, scratch)  # the last step they save is the last one
    net = learnt(base_model, cache, params, scratch, ProcessGroup())
    counts = {"steps": params.steps, "pairs": len(cache.train), "held_out_pairs": len(cache.held_out)}
    return _publish(net, base_model.pipeline, scratch, root / OUT, knobs | {"data": data}, counts, params.stored_dtype)


def learnt(base_model: TextToImageModel, cache: Cache, params: TrainParams, scratch: Path, crew: ProcessGroup) -> EditorUNet:
    """The base_model made an editor: the same start in every process, then the loop."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for("editor", "start", params.seed))
        net = checkpoint.from_base_model(base_model, params.task_width)
    learn(TrainableEditor(net, base_model, reads=params.lr_text > 0), cache, params, scratch, crew)
    return net


def _join(crew: ProcessGroup, params: TrainParams, base: str, latents: Path, scratch: Path) -> None:
    device = Runtime.choose(params.device, params.dtype).device
    learnt(text_to_image.load(base, device), Cache(latents, params.held_out_share), params, scratch, crew)


def _publish(
    net: EditorUNet, pipeline: Any, scratch: Path, out: Path, knobs: dict[str, Any], counts: dict[str, int], stored: str
) -> Summary:
    """Write the editor and what is known of its making; `summary.json` last, then forget the scratch."""
    shutil.rmtree(out, ignore_errors=True)
    checkpoint.save(net, pipeline, out, getattr(torch, stored))
    shutil.copy2(scratch / "stats.jsonl", out / "stats.jsonl")
    summary = write_summary(out, "train", scratch.name, knobs, counts)
    shutil.rmtree(scratch.parent)
    return summary


if __name__ == "__main__":
    run(config.load(TrainParams, "train"), Path())
