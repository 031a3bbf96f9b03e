"""A training of a tiny editor, in this process or in several; those import this module to find their work."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from emuedit.editor import checkpoint
from emuedit.tracking import stats
from emuedit.training import loss
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import open_accelerator
from emuedit.training.loop import TrainLoop
from emuedit.training.loss import ConditionDropout, LossParts, LossWeights
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor
from tests.editor.tiny_pipelines import D_V, build_base_model

SETTINGS = TrainSettings(
    dtype="float32", steps=6, batch_size=4, lr=1e-2, lr_mult_new=3.0, lr_mult_text=0.5, warmup_steps=2, ema_decay=0.9,
    task_embedding_dim=D_V, held_out_share=0.3, eval_every_steps=3, log_every_steps=1, save_every_s=0.0,
    dropout=ConditionDropout(text=0.2, image=0.2, both=0.1),
    loss_weights=LossWeights(timestep_power=(0.5, 1.0), mask_balance=0.5, change_loss_weight=0.5),
)  # fmt: skip

KILL_AT_STEP = 3
"""Counted from 0."""


def make_editor(settings: TrainSettings = SETTINGS, kind: str = "toy") -> TrainableEditor:
    """An untrained editor; the same weights in every process."""
    base_model = build_base_model(kind)
    net = checkpoint.from_base_model(base_model, settings.task_embedding_dim)
    return TrainableEditor(net, base_model, settings)


def train(cache_folder: Path, scratch: Path, settings: TrainSettings = SETTINGS, kind: str = "toy") -> TrainableEditor:
    """Train from the state in `scratch`, if there is one."""
    scratch.mkdir(parents=True, exist_ok=True)
    editor = make_editor(settings, kind)
    with open_accelerator("cpu", settings.dtype) as accelerator:
        TrainLoop(editor, LatentCache(cache_folder, settings.held_out_share), settings, scratch, accelerator).run()
    editor.finish()
    return editor


def train_in_process(
    cache_folder: Path, uninterrupted: Path | None, killed: Path, settings: TrainSettings, victim: int | None = None
) -> None:
    """Train as one of several processes in the folder `killed`, to the end if it is resumed there.

    With `uninterrupted`, train there first. The process with the rank `victim` kills itself in the middle of the fourth step in
    `killed`.
    """
    stats._Mirror._try = lambda mirror: None  # type: ignore[method-assign]
    torch.set_num_threads(1)
    if uninterrupted is not None:
        train(cache_folder, uninterrupted, settings)
    loss_parts, calls = loss.loss_parts, []

    def count(*arguments: Any, **options: Any) -> LossParts:
        if torch.is_grad_enabled():  # not in an evaluation
            if os.environ["RANK"] == str(victim) and len(calls) == KILL_AT_STEP:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(1)
        return loss_parts(*arguments, **options)

    loss.loss_parts = count
    train(cache_folder, killed, settings)


def train_for_some_steps(cache_folder: Path, folder: Path, settings: TrainSettings) -> None:
    """Train as one of several processes, or alone: one step in the folder `first`, and to the end in `end`."""
    stats._Mirror._try = lambda mirror: None  # type: ignore[method-assign]
    torch.set_num_threads(1)
    train(cache_folder, folder / "first", settings.model_copy(update={"steps": 1}))
    train(cache_folder, folder / "end", settings)
