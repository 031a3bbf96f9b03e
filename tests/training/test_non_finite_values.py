"""A training stops at the first loss or gradient that is not finite, and names its pairs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.tasks import ALL_TASKS
from emuedit.tracking import read_stats
from emuedit.training.batch_feed import BatchFeed
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import open_accelerator
from emuedit.training.loop import TrainLoop
from emuedit.training.optim.optimization import STATE_FILE, Optimization
from emuedit.training.training_error import TrainingError
from tests.training.tiny_training import SETTINGS, make_editor, train


def state(scratch: Path) -> dict[str, Any]:
    return torch.load(scratch / STATE_FILE, weights_only=True)


def check_bad_batch(cache_folder: Path, scratch: Path, step: int) -> None:
    """The file names the step and its pairs."""
    cache = LatentCache(cache_folder, SETTINGS.held_out_share)
    with open_accelerator() as accelerator, BatchFeed(cache, SETTINGS, 1000, accelerator) as feed:
        ((batch, _),) = feed.step(step)
    assert json.loads((scratch / "bad-batch.json").read_text()) == {"step": step, "pair_ids": list(batch.ids)}


@pytest.mark.slow
@pytest.mark.parametrize("log_every_steps", [1, 10])
def test_a_gradient_that_is_not_finite_stops_before_the_state_is_saved(
    log_every_steps: int, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the first bad step, also if a later one is logged, whose loss is not finite because of it."""
    settings = SETTINGS.model_copy(update={"log_every_steps": log_every_steps})
    backward, calls = Optimization.backward, []

    def spoil(optimization: Optimization, loss: torch.Tensor) -> None:
        backward(optimization, loss)
        calls.append(loss)
        if len(calls) == 4:
            next(value.grad for value in optimization.parameters.values() if value.grad is not None).fill_(torch.inf)

    monkeypatch.setattr(Optimization, "backward", spoil)
    with pytest.raises(TrainingError, match=r"want a finite norm of the gradient, got inf at step 3; .*bad-batch\.json"):
        train(cache_folder, tmp_path, settings)
    assert calls[3].isfinite()
    assert (state(tmp_path)["step"] == 3) if log_every_steps == 1 else not (tmp_path / STATE_FILE).exists()
    check_bad_batch(cache_folder, tmp_path, 3)


@pytest.mark.parametrize("log_every_steps", [1, 10])
def test_the_first_step_that_is_not_finite_is_named_where_several_are_read_at_once(
    log_every_steps: int, cache_folder: Path, tmp_path: Path
) -> None:
    """As on a GPU, where they are read every `log_every_steps`."""
    settings = SETTINGS.model_copy(update={"log_every_steps": log_every_steps})
    cache = LatentCache(cache_folder, settings.held_out_share)
    good, bad = torch.tensor([0.5]), torch.tensor([math.nan])
    with open_accelerator() as accelerator, BatchFeed(cache, settings, 1000, accelerator) as feed:
        loop = TrainLoop(make_editor(settings), cache, settings, tmp_path, accelerator)
        loop._names = ("loss",)
        loop._unchecked = [(0, good, good[0]), (1, good, bad[0]), (2, bad, bad[0])]
        with pytest.raises(TrainingError, match="want a finite norm of the gradient, got nan at step 1"):
            loop._check(feed)
        loop._unchecked = [(3, good, good[0])]
        assert loop._check(feed) == {"loss": 0.5, "grad_norm": 0.5}
    check_bad_batch(cache_folder, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_pairs(
    value: float, cache_folder: Path, tmp_path: Path, change_losses: Any
) -> None:
    change_losses(lambda call, losses: losses * (value if call == 2 else 1.0))
    with pytest.raises(TrainingError, match=rf"want a finite loss, got {value} at step 1.*bad-batch\.json.*lower train\.lr"):
        train(cache_folder, tmp_path)
    check_bad_batch(cache_folder, tmp_path, 1)
    assert state(tmp_path)["step"] == 1, "the state of before the bad step is kept"
    assert read_stats(tmp_path / "stats.jsonl")[-1] == {"status": "FAILED"}


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_stops_the_training(
    value: float, cache_folder: Path, tmp_path: Path, change_losses: Any
) -> None:
    def spoil_the_first(call: int, losses: torch.Tensor) -> torch.Tensor:
        return losses if torch.is_grad_enabled() else torch.cat([losses[:1] * value, losses[1:]])

    change_losses(spoil_the_first)
    with pytest.raises(TrainingError, match=rf"want a finite held-out loss, got {value} for the task local; .*lower train\.lr"):
        train(cache_folder, tmp_path)
    held_out = LatentCache(cache_folder, SETTINGS.held_out_share).held_out
    first = held_out.ids((held_out.task == ALL_TASKS.index("local")).nonzero()[0][:1])
    assert json.loads((tmp_path / "bad-batch.json").read_text()) == {"step": 3, "pair_ids": list(first)}
    assert state(tmp_path)["step"] == 2, "the state of before the bad step is kept"
    assert read_stats(tmp_path / "stats.jsonl")[-1] == {"status": "FAILED"}
