"""A training of a tiny editor, in this process or in several; those import this module to find their work."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from emuedit.editor import checkpoint
from emuedit.tracking import stats
from emuedit.training import loss
from emuedit.training.distributed import open_accelerator
from emuedit.training.latent_cache import LatentCache
from emuedit.training.loop import TrainLoop
from emuedit.training.loss import ConditionDropout, LossWeights
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor
from emuedit.training.training_error import TrainingError
from tests.editor.tiny_pipelines import D_V, build_base_model

SETTINGS = TrainSettings(
    dtype="float32", steps=6, batch_size=4, lr=1e-2, lr_mult_new=3.0, lr_mult_text=0.5, warmup_steps=2, ema_decay=0.9,
    task_embedding_dim=D_V, held_out_share=0.3, eval_every_steps=3, log_every_steps=1, save_every_s=0.0,
    dropout=ConditionDropout(text=0.2, image=0.2, both=0.1),
    loss_weights=LossWeights(timestep_power=(0.5, 1.0), mask_balance=0.5, change_loss_weight=0.5),
)  # fmt: skip


def make_editor(settings: TrainSettings = SETTINGS, kind: str = "toy") -> TrainableEditor:
    """An untrained editor; the same weights in every process."""
    base_model = build_base_model(kind)
    net = checkpoint.from_base_model(base_model, settings.task_embedding_dim)
    return TrainableEditor(net, base_model, settings)


def train(cache_folder: Path, scratch: Path, settings: TrainSettings = SETTINGS, kind: str = "toy") -> TrainableEditor:
    """Train from the state in `scratch`, if there is one."""
    scratch.mkdir(parents=True, exist_ok=True)
    editor = make_editor(settings, kind)
    with open_accelerator("cpu", settings.dtype, find_unused_parameters=settings.lr_mult_text > 0) as accelerator:
        TrainLoop(editor, LatentCache(cache_folder, settings.held_out_share), settings, scratch, accelerator).run()
    return editor


def train_in_process(cache_folder: Path, scratch: Path, settings: TrainSettings, kill_at_step: int | None) -> None:
    """Train as one of several processes. The second one kills itself in the middle of a step, counted from 0."""
    stats._Mirror._try = lambda mirror: None  # type: ignore[method-assign]
    torch.set_num_threads(1)
    loss_per_sample, calls = loss.loss_per_sample, []

    def count(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) - 1 == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_per_sample(*arguments, **options)

    loss.loss_per_sample = count
    train(cache_folder, scratch, settings)


def fail_in_process(message: str) -> None:
    """Raise an error of ours in the second process, or of Python without a message; the first one waits for it."""
    if os.environ["RANK"] == "1":
        raise TrainingError(message) if message else ZeroDivisionError("a bug")
    signal.pause()


def write_rank(folder: str) -> None:
    """Write a file whose name says which process of how many this is, and the sum over all of rank + 1."""
    with open_accelerator("cpu") as accelerator:
        rank = accelerator.process_index
        total = accelerator.reduce(torch.tensor(rank + 1.0), "sum").item()
        Path(folder, f"rank{rank} of {accelerator.num_processes}, sum {total}").touch()
