"""Task inversion: learn the embedding of a new task from a few examples; every other weight stays frozen.

Minimises the training loss over v_new (Eq. 3 of Emu Edit, arXiv 2311.10089). With `adapter_rank`, a low-rank adapter that is
active only for this task is trained too (ours, `editor/task_adapter.py`); the editor's weights stay frozen.
Shapes: D_v the width of a task embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.data.publish import read_summary
from emuedit.editor import task_pack
from emuedit.editor.sampling import EditSampler
from emuedit.editor.task_adapter import AdaptedLayers, TaskAdapter
from emuedit.editor.task_pack import TaskPack
from emuedit.models import objective
from emuedit.models.attention_processor import use_unfused_attention_on_cpu
from emuedit.progress import Progress
from emuedit.runtime import generator, rng
from emuedit.tracking import Tracker
from emuedit.training import inversion_examples
from emuedit.training.batches.batch import Batch
from emuedit.training.inversion_examples import select_examples, split_rows
from emuedit.training.loss import (
    NO_DROPOUT,
    ConditionDropout,
    LossWeights,
    NoiseDraws,
    draw_noise,
    loss_parts,
    refuse_min_snr,
)

MIN_HELD_OUT_DRAWS = 8
"""Draws of a timestep and noise in the held-out loss, at least; smaller sets are repeated. Ours."""


class InversionLoss(config.Params):
    """The loss of task inversion. Defaults are the settings of the editor's training, if its folder has them."""

    loss_weights: LossWeights = LossWeights()
    """Weights of the parts of the loss."""
    dropout: ConditionDropout = ConditionDropout()
    """Condition dropout."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR weighting of timesteps: min(SNR, gamma) on the clean latents (Hang et al., arXiv 2303.09556); None: off."""


class InversionSettings(InversionLoss):
    """Settings of task inversion."""

    task: Annotated[str, AfterValidator(task_pack.check_name)]
    """The task to learn: in the benchmark, and not a task of the editor; lower-case letters, digits and _, at most 64."""
    n_examples: int = Field(ge=1)
    """Number of training examples (Emu Edit: 1 to 100); the stage may move some of `n_held_out` to them."""
    n_held_out: int = Field(ge=1)
    """Number of further edits of the same split; their loss selects the start and stops early. Edits of one image are held out
    together or not at all."""
    steps: int = Field(ge=0)
    """Maximum number of optimizer steps."""
    lr: float = Field(gt=0)
    """Learning rate of Adam for the embedding."""
    adapter_rank: int = Field(0, ge=0)
    """Rank of the adapter that is trained with the embedding; 0: only the embedding, as in Emu Edit."""
    adapter_layers: AdaptedLayers = "all"
    """Layers that the adapter updates: attention, or all linear layers and convolutions."""
    adapter_lr: float = Field(1e-3, gt=0)
    """Learning rate of Adam for the adapter."""
    seed: int = Field(0, ge=0)
    """Seed of the order of examples, timesteps, noise and dropout."""
    batch_size: int = Field(16, ge=1)
    """Examples per step, drawn with replacement."""
    eval_every_steps: int = Field(10, ge=1)
    """Steps between two evaluations of the held-out loss."""
    patience: int = Field(3, ge=1)
    """Evaluations without a lower loss before it stops."""
    flip: bool = True
    """Learn from mirrored copies too, of examples whose instruction mentions no side and no letters."""


@dataclass(frozen=True)
class LearnedTask:
    """The result of inversion."""

    v: Tensor  # [D_v]
    adapter: TaskAdapter | None
    """Adapter trained with v; None: only v."""
    start: str
    """Initial embedding: a task of the editor, or `mean`."""
    steps: int
    """Number of steps, including those after the best one."""
    loss_start: float
    loss: float
    """Held-out loss at the start and at the best step, from which v and the adapter are taken."""

    def pack(
        self,
        fingerprint: str,
        settings: InversionSettings,
        instructions: Sequence[str],
        origin: Mapping[str, Any],
        change_threshold: float | None = None,
    ) -> TaskPack:
        """The pack of the task, for the editor with this fingerprint. Its record: training results and `origin`."""
        figures = {"start": self.start, "steps": self.steps, "loss_start": self.loss_start, "loss": self.loss}
        return TaskPack(
            name=settings.task,
            v=self.v,
            editor_fingerprint=fingerprint,
            n_examples=settings.n_examples,
            record=figures | dict(origin),
            adapter=self.adapter,
            instructions=tuple(dict.fromkeys(instructions)),
            change_threshold=change_threshold,
        )


def training_loss(editor_folder: Path) -> dict[str, Any]:
    """The loss settings of the editor's training, as far as its folder has them."""
    recorded = read_summary(editor_folder).params if (editor_folder / SUMMARY_FILE).is_file() else {}
    chosen = {name: value for name, value in recorded.items() if name in InversionLoss.model_fields}
    settings = InversionLoss.model_validate_json(json.dumps(chosen))
    return {name: getattr(settings, name) for name in chosen}


def start_embeddings(sampler: EditSampler) -> dict[str, Tensor]:
    """Initial embeddings to try: every trained row of the task embedding, and their mean; each [D_v].

    Rows of added packs are left out: they fit their adapters, and the result would depend on which packs are installed.
    """
    n_trained = sampler.net.table.n_trained
    rows = sampler.net.table.v.detach()[:n_trained]
    return {"mean": rows.mean(0)} | dict(zip(sampler.tasks[:n_trained], rows, strict=True))


def invert(
    sampler: EditSampler,
    examples: Batch,
    held_out: Batch,
    settings: InversionSettings,
    tracker: Tracker | None = None,
    n_passes: int = 1,
) -> LearnedTask:
    """The core function: train v_new on the examples, with early stopping on the held-out edits.

    It starts from the row, or the mean of rows, with the lowest held-out loss. Every evaluation of that loss has the same
    stratified timesteps and noise: at least `MIN_HELD_OUT_DRAWS` draws, equally many for each edit. More passes of at most
    `PIXELS_PER_PASS` reduce memory; the result is equal up to rounding. The editor is the same afterwards; edits of other threads
    wait until then. Raises ValueError for an editor in float16, whose gradients would underflow, and for min-SNR weights with a
    noise schedule that ends in pure noise.
    """
    if sampler.dtype == torch.float16:
        raise ValueError("want an editor in float32 or bfloat16 to learn a task, got float16; load it with another dtype")
    if objective.ends_in_noise(sampler.parts.scheduler):
        schedule = "the noise schedule of the editor, which ends in pure noise"
        refuse_min_snr(settings.min_snr_gamma, schedule, "set inversion.min_snr_gamma to null")
    with sampler.lock, _set_up_for_training(sampler):
        return _train(sampler, examples, held_out, settings, tracker, n_passes)


@contextmanager
def _set_up_for_training(sampler: EditSampler) -> Iterator[None]:
    """The U-Net's attention as for training, and on a GPU gradient checkpointing; both as before afterwards."""
    unet = sampler.net.unet
    processors, checkpoints = dict(unet.attn_processors), unet.is_gradient_checkpointing
    try:
        use_unfused_attention_on_cpu(unet, [], sampler.dtype)
        if sampler.device.type == "cuda":
            unet.enable_gradient_checkpointing()  # else a batch of 8 at 512 px needs 24 GiB for SD1.5
        yield
    finally:
        unet.set_attn_processor(processors)
        if not checkpoints:
            unet.disable_gradient_checkpointing()


def _train(
    sampler: EditSampler, examples: Batch, held_out: Batch, settings: InversionSettings, tracker: Tracker | None, n_passes: int
) -> LearnedTask:
    held_out = _repeat(held_out, MIN_HELD_OUT_DRAWS)
    shape, n_timesteps = tuple(held_out.target.shape), sampler.parts.scheduler.config.num_train_timesteps
    power, sampling = settings.loss_weights.power_at(0.0), settings.loss_weights.timestep_sampling
    fixed_draws = draw_noise(shape, n_timesteps, NO_DROPOUT, power, "inversion", "held out", timestep_sampling=sampling)

    def measure(v: Tensor) -> float:
        with torch.no_grad():
            return sum(loss.item() for loss in _losses(sampler, held_out, fixed_draws, v, settings, n_passes))

    starts = start_embeddings(sampler)
    with Progress("inversion: choose a start", len(starts), "row") as progress:
        losses = {}
        for name, row in starts.items():
            losses[name] = measure(row)
            progress.advance()
    start = min(losses, key=lambda name: losses[name])
    v = starts[start].clone().requires_grad_(True)
    adapter = _new_adapter(sampler, settings)
    best, best_loss = _snapshot(v, adapter), losses[start]
    groups: list[dict[str, Any]] = [{"params": [v], "lr": settings.lr}]
    if adapter is not None:
        groups.append({"params": adapter.parameters(), "lr": settings.adapter_lr})
    optimizer = torch.optim.Adam(groups)
    # linear decay to a tenth, because the gradient is noisy
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / max(1, settings.steps))
    evaluations_without_gain = steps_made = 0
    applied = nullcontext() if adapter is None else adapter.applied(sampler.net.unet)
    with applied, Progress(f"inversion: learn {settings.task}", settings.steps, "step") as progress:
        for step in range(settings.steps):
            optimizer.zero_grad(set_to_none=True)
            step_loss = torch.zeros((), device=sampler.device)
            for loss in _step_losses(sampler, examples, v, settings, step, n_timesteps, n_passes):
                loss.backward()
                step_loss += loss.detach()
            optimizer.step()
            schedule.step()
            steps_made = step + 1
            progress.advance()
            if steps_made % settings.eval_every_steps and steps_made < settings.steps:
                continue
            held_out_loss = measure(v)
            if tracker is not None:
                tracker.log(steps_made, loss=step_loss.item(), held_out=held_out_loss)
            evaluations_without_gain += 1
            if held_out_loss < best_loss:
                best, best_loss, evaluations_without_gain = _snapshot(v, adapter), held_out_loss, 0
            if evaluations_without_gain >= settings.patience:
                break
    return LearnedTask(*best, start, steps_made, losses[start], best_loss)


def _repeat(batch: Batch, n_rows: int) -> Batch:
    """The batch, repeated as often as it takes to have at least n_rows."""
    return select_examples(batch, torch.arange(len(batch), device=batch.target.device).repeat(-(-n_rows // len(batch))))


def _new_adapter(sampler: EditSampler, settings: InversionSettings) -> TaskAdapter | None:
    if not settings.adapter_rank:
        return None
    random = generator("inversion", settings.seed, "adapter")
    adapter = TaskAdapter.untrained(sampler.net.unet, settings.adapter_rank, settings.adapter_layers, random)
    for tensor in adapter.parameters():
        tensor.requires_grad_(True)
    return adapter


def _snapshot(v: Tensor, adapter: TaskAdapter | None) -> tuple[Tensor, TaskAdapter | None]:
    return v.detach().clone(), None if adapter is None else adapter.copy()


def _step_losses(
    sampler: EditSampler, examples: Batch, v: Tensor, settings: InversionSettings, step: int, n_timesteps: int, n_passes: int
) -> Iterator[Tensor]:
    rows = rng("inversion", settings.seed, step).integers(len(examples), size=settings.batch_size)
    batch = select_examples(examples, torch.from_numpy(rows).to(examples.target.device))
    power, sampling = settings.loss_weights.power_at(step / settings.steps), settings.loss_weights.timestep_sampling
    shape, keys = tuple(batch.target.shape), ("inversion", settings.seed, step)
    draws = draw_noise(shape, n_timesteps, settings.dropout, power, *keys, timestep_sampling=sampling)
    return _losses(sampler, batch, draws, v, settings, n_passes)


def _losses(
    sampler: EditSampler, batch: Batch, draws: NoiseDraws, v: Tensor, settings: InversionSettings, n_passes: int
) -> Iterator[Tensor]:
    """Lazily yields the contribution of each pass to the mean loss of a batch."""
    n_rows, scheduler, weights = len(batch), sampler.parts.scheduler, settings.loss_weights
    pixels = math.prod(batch.target.shape[-2:]) * sampler.parts.factor**2
    for rows in split_rows(n_rows, min(-(-n_rows // n_passes), max(1, inversion_examples.PIXELS_PER_PASS // pixels))):
        part = select_examples(batch, torch.arange(rows.start, rows.stop, device=batch.target.device))
        with sampler.autocast():
            arguments = (part, draws.rows(rows), v.expand(len(part), -1), weights, settings.min_snr_gamma)
            of_pass = loss_parts(sampler.net, scheduler, *arguments).total(weights)
            loss = of_pass.mean() * (len(part) / n_rows)
        yield loss
