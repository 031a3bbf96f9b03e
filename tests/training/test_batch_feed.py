"""The batches of a training follow from its settings: which pairs, mirrored or not, and the random draws."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.training.batch_feed import BatchFeed, MicroBatch
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.loss import ConditionDropout, LossWeights, draw_noise
from emuedit.training.train_settings import TrainSettings

DROPOUT, POWERS = ConditionDropout(text=0.3, image=0.2, both=0.4), LossWeights(timestep_power=(0.5, 3.0))
SETTINGS = TrainSettings(
    steps=20, batch_size=6, lr=1e-3, seed=3, task_balance=1.0, task_weights={"remove": 4.0}, replay_share=0.6,
    dropout=DROPOUT, loss_weights=POWERS,
)  # fmt: skip
"""Settings of batches that are not the defaults."""
N_TIMESTEPS, STEP = 400, 5


@pytest.fixture
def cache(cache_folder: Path) -> LatentCache:
    """A third of its pairs are replayed ones."""
    cache = LatentCache(cache_folder, 0.0)
    cache.train = replace(cache.train, is_replay=np.arange(len(cache.train)) % 3 == 0)
    return cache


def feed_step(cache: LatentCache, step: int = STEP, **changes: Any) -> MicroBatch:
    """The only micro batch of a step in a single process."""
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    with BatchFeed(cache, SETTINGS.model_copy(update=changes), N_TIMESTEPS, accelerator) as feed:
        (micro_batch,) = feed.step(step)
    return micro_batch


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, STEP])
def test_the_pairs_are_in_the_order_of_the_settings(step: int, cache: LatentCache) -> None:
    positions, flip = cache.order(6, 1.0, 3, {"remove": 4.0}, 0.6).batch(step)
    batch, _ = feed_step(cache, step)
    want = cache.batch(cache.train, positions, flip)
    assert batch.ids == want.ids
    assert torch.equal(batch.source, want.source)
    assert torch.equal(batch.target, want.target)


@pytest.mark.parametrize(
    ("weights", "sampling", "power"),
    [(POWERS, "power", 0.5 + 2.5 * STEP / 20), (LossWeights(timestep_sampling="logit_normal"), "logit_normal", 1.0)],
)
def test_the_draws_are_those_of_the_settings(weights: LossWeights, sampling: Any, power: float, cache: LatentCache) -> None:
    batch, draws = feed_step(cache, loss_weights=weights)
    shape = tuple(batch.target.shape)
    want = draw_noise(shape, N_TIMESTEPS, DROPOUT, power, "train", 3, STEP, timestep_sampling=sampling)
    for name in ("t", "eps", "no_text", "no_image"):
        assert torch.equal(getattr(draws, name), getattr(want, name)), name
    assert draws.no_text.any()
    assert draws.no_image.any()


def test_pairs_are_mirrored_only_if_the_settings_allow_it(cache: LatentCache) -> None:
    positions, flip = cache.order(6, 1.0, 3, {"remove": 4.0}, 0.6).batch(STEP)
    as_stored = cache.batch(cache.train, positions, np.zeros_like(flip))
    assert torch.equal(feed_step(cache, flip=False)[0].target, as_stored.target)
    assert not torch.equal(feed_step(cache, flip=True)[0].target, as_stored.target)


def test_another_seed_gives_another_order_and_other_draws(cache: LatentCache) -> None:
    (batch, draws), (other_batch, other_draws) = (feed_step(cache, seed=seed) for seed in (3, 4))
    assert batch.ids != other_batch.ids
    assert not torch.equal(draws.eps, other_draws.eps)
    assert not torch.equal(draws.t, other_draws.t)
