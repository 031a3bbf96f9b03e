"""Steps, batch and learning rate of a photo world for the expected number of pairs."""

import re
from itertools import pairwise

import pytest

from emuedit.config import read_yaml
from emuedit.training.presets import FOLDER
from emuedit.worlds import training_amount
from emuedit.worlds.photo_world import PRESETS

PAIRS_PER_CAPTION = 13 * 0.3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_captions", [1, 30, 100, 500, 5000, 100_000])
def test_the_stated_passes_are_those_of_the_steps(preset: str, n_captions: int) -> None:
    """The reason stated 20 passes; with a batch of 1,024, 100 captions were trained for 1,313 passes."""
    n_pairs = n_captions * PAIRS_PER_CAPTION
    amount, settings = training_amount.choose(preset, n_pairs), read_yaml(FOLDER / f"{preset}.yaml")
    stated = re.match(r"([\d.]+) passes over about (\d+) kept pairs; ", amount.steps_reason)
    assert stated
    passes = amount.steps * amount.batch_size / n_pairs
    assert float(stated[1]) == (round(passes) if passes >= 1 else round(passes, 2))
    assert int(stated[2]) == round(n_pairs)
    assert amount.batch_size / amount.accumulation_steps <= settings["batch_size"] / settings["accumulation_steps"]
    assert amount.batch_size % amount.accumulation_steps == amount.batch_size % 16 == 0
    assert amount.steps <= settings["steps"]


@pytest.mark.parametrize("preset", PRESETS)
def test_more_captions_mean_more_steps_and_passes_stay_alike(preset: str) -> None:
    amounts = {n: training_amount.choose(preset, n * PAIRS_PER_CAPTION) for n in (30, 100, 150, 200, 300, 500, 2000, 3000)}
    assert all(one.steps * one.batch_size <= other.steps * other.batch_size for one, other in pairwise(amounts.values()))
    assert amounts[100].steps < amounts[500].steps < amounts[2000].steps
    for n, amount in amounts.items():
        if n >= 150:
            assert amount.steps * amount.batch_size / (n * PAIRS_PER_CAPTION) == pytest.approx(20, abs=3)


def test_the_published_settings_are_for_many_pairs() -> None:
    """With 1,024 pairs per step, a small world would have few optimizer steps; the rate is that of the batch."""
    small, large = (training_amount.choose("sd15-256", n_pairs) for n_pairs in (390, 1e6))
    assert (small.steps, small.batch_size, small.accumulation_steps) == (500, 16, 1)
    assert small.lr == pytest.approx(1.25e-5, rel=0.05)
    assert (large.steps, large.batch_size, large.accumulation_steps, large.lr) == (10_000, 1024, 32, 1.0e-4)
    assert (large.batch_reason, large.lr_reason) == ("of the preset", "of the preset")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_pairs", [100, 1000, 20_000])
def test_the_warm_up_is_a_small_part_of_the_training(preset: str, n_pairs: int) -> None:
    """The 500 steps for few pairs were all of them warm-up."""
    warmup_steps = read_yaml(FOLDER / f"{preset}.yaml").get("warmup_steps", 0)
    assert warmup_steps <= training_amount.choose(preset, n_pairs).steps / 10
