"""The settings of a training reach its optimizer, its average and its previews."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.tracking import read_stats
from emuedit.training.batch_feed import BatchFeed
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import open_accelerator
from emuedit.training.loop import Preview, TrainLoop
from emuedit.training.optim import optimization
from emuedit.training.optim.ema import EmaSettings
from emuedit.training.optim.optimizers import build_optimizer
from emuedit.training.train_settings import TrainSettings
from tests.training.tiny_training import SETTINGS, make_editor


@contextmanager
def open_loop(cache_folder: Path, scratch: Path, settings: TrainSettings, preview: Preview | None = None) -> Iterator[TrainLoop]:
    with open_accelerator("cpu", settings.dtype) as accelerator:
        cache = LatentCache(cache_folder, settings.held_out_share)
        yield TrainLoop(make_editor(settings), cache, settings, scratch, accelerator, preview)


@pytest.mark.slow
def test_the_optimizer_and_the_average_have_the_settings(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "adam_beta2": 0.95, "weight_decay": 0.2, "max_grad_norm": 0.7, "optimizer": "paged_adamw_8bit",
        "ema_decay": 0.98, "ema_device": "cpu", "ema_dtype": "bfloat16", "lr_mult_new": 3.0, "lr_mult_text": 0.5,
    }  # fmt: skip
    names: list[str] = []

    def build(name: str, groups: Sequence[dict[str, Any]], *arguments: Any) -> torch.optim.Optimizer:
        names.append(name)
        return build_optimizer("adamw", groups, *arguments)

    monkeypatch.setattr(optimization, "build_optimizer", build)
    monkeypatch.setattr("emuedit.training.loop.check_processes", lambda *_: None)  # it wants a GPU for that optimizer
    with open_loop(cache_folder, tmp_path, SETTINGS.model_copy(update=changes)) as loop:
        state = loop.optimization
        assert names == ["paged_adamw_8bit"]
        assert state.max_grad_norm == 0.7
        assert state.ema is not None
        assert state.ema.settings == EmaSettings(0.98, "cpu", torch.bfloat16)
        group_of = {id(value): group for group in state.optimizer.param_groups for value in group["params"]}
        groups = {name: group_of[id(value)] for name, value in loop.editor.named_parameters()}
    assert {(group["betas"], group["weight_decay"]) for group in groups.values()} == {((0.9, 0.95), 0.2)}
    multipliers = {name: group["lr_mult"] for name, group in groups.items()}
    assert multipliers == {name: loop.settings.lr_mult(name) for name in groups}
    assert set(multipliers.values()) == {3.0, 0.5, 1.0}


@pytest.mark.slow
def test_logged_losses_keep_no_activations(cache_folder: Path, tmp_path: Path) -> None:
    """They wait for the next line of the log, and a graph of every step would wait with them."""
    with open_loop(cache_folder, tmp_path, SETTINGS) as loop, BatchFeed(loop.cache, SETTINGS, 1000, loop.accelerator) as feed:
        losses = loop._backward(feed)
    assert len(losses) == 3
    assert not losses.requires_grad


@pytest.mark.slow
def test_previews_keep_their_interval(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss is due after every step, and ten seconds pass until then."""
    now_s, preview_steps = [0.0], []

    def evaluate(*_: object) -> dict[str, float]:
        now_s[0] += 10.0
        return {}

    def show(step: int) -> dict[str, float]:
        preview_steps.append(step)
        return {}

    monkeypatch.setattr("emuedit.training.loop.held_out_loss", evaluate)
    monkeypatch.setattr("emuedit.training.loop.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    settings = SETTINGS.model_copy(update={"steps": 6, "eval_every_steps": 1, "save_every_s": 1e6})
    with open_loop(cache_folder, tmp_path, settings, Preview(15.0, show)) as loop:
        loop.run()
    assert preview_steps == [3, 6], "the clock is read before the loss is computed: 0, 10, 20 s; then 30, 40, 50 s"


@pytest.mark.slow
def test_the_held_out_loss_has_its_own_interval(cache_folder: Path, tmp_path: Path) -> None:
    """It is no multiple of that of the log; the log's lines between stay as they are."""
    settings = SETTINGS.model_copy(update={"steps": 7, "eval_every_steps": 3, "log_every_steps": 2})
    previewed: list[int] = []
    with open_loop(cache_folder, tmp_path, settings, Preview(0.0, lambda step: (previewed.append(step), {})[1])) as loop:
        loop.run()
    lines = [line for line in read_stats(tmp_path / "stats.jsonl") if "metrics" in line]
    assert [line["step"] for line in lines if "held_out" in line["metrics"]] == [3, 6, 7]
    assert [line["step"] for line in lines if "loss" in line["metrics"]] == [2, 4, 6, 7]
    assert previewed == [3, 6, 7]
