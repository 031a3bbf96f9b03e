from dataclasses import replace

import numpy as np
import pytest

from toyworld.edits import exact_judge
from toyworld.edits.scene_changes import local
from toyworld.scenes.palette import COLOURS
from toyworld.scenes.render import images
from toyworld.scenes.scene import EMPTY, Scenes, numbers, scenes

N = 12
FIRST, SECOND = np.zeros(N, int), np.ones(N, int)


@pytest.fixture(scope="module")
def before() -> Scenes:
    """Plain days with two objects or more, of which the first will change its colour."""
    pool = scenes(numbers("held_out", 0, 600))
    plain = (pool.count >= 2) & (pool.condition == 0) & (pool.style == 0) & (pool.background != 0)
    chosen = pool[np.flatnonzero(plain)[:N]]
    return replace(chosen, texture=np.zeros_like(chosen.texture))


def recoloured(before: Scenes, slots: np.ndarray, shift: int) -> np.ndarray:
    """The pictures with other colours; `shift` 0 is the value asked for."""
    rows = np.arange(N)
    return images(before.edited(rows, slots, colour=(before.colour[rows, slots] + 2 + shift) % len(COLOURS)))


@pytest.fixture(scope="module")
def exact(before: Scenes) -> np.ndarray:
    return recoloured(before, FIRST, 0)


@pytest.fixture(scope="module")
def others(before: Scenes) -> np.ndarray:
    return np.stack([recoloured(before, FIRST, k) for k in (1, 2, 3)], 1)


def judged(output: np.ndarray, before: Scenes, exact: np.ndarray, others: np.ndarray) -> exact_judge.Judgement:
    return exact_judge.judge(output, images(before), exact, others)


def test_accepts_the_exact_result(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    found = judged(exact, before, exact, others)
    assert found.success.all()
    assert (found.inside_error == 0).all()
    assert (found.outside_error == 0).all()
    assert set(found.reason) == {""}


def test_accepts_a_slightly_noisy_result(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 8, exact.shape)
    assert judged((exact + noise).clip(0, 255).astype(np.uint8), before, exact, others).success.all()


def test_rejects_the_input(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    found = judged(images(before), before, exact, others)
    assert not found.success.any()
    assert (found.nearest == exact_judge.INPUT).all()
    assert all("nothing was done" in reason for reason in found.reason)


def test_rejects_another_value(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    found = judged(others[:, 1], before, exact, others)
    assert not found.success.any()
    assert (found.nearest == 3).all()
    assert found.reason[0].endswith("alternative 1")


def test_rejects_the_wrong_object(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    found = judged(recoloured(before, SECOND, 0), before, exact, others)
    assert not found.success.any()
    assert (found.nearest == exact_judge.INPUT).all()


def test_rejects_a_damaged_background(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    region = exact_judge.must_change(images(before), exact)
    damaged = np.where(region[..., None], exact, exact // 4 * 3)
    found = judged(damaged, before, exact, others)
    assert (found.nearest == exact_judge.EXACT).all()
    assert not found.success.any()
    assert all("outside" in reason for reason in found.reason)
    assert exact_judge.judge(damaged, images(before), exact, others, bound=0.5, local_bound=1.0).success.all()


def test_an_edit_of_everything_has_no_outside(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    night, fog, rain = (images(replace(before, condition=before.condition + k)) for k in (1, 2, 3))
    everywhere = np.ones(exact.shape[:3], bool)
    found = exact_judge.judge(night, images(before), night, np.stack([fog, rain], 1), everywhere)
    assert found.success.all()
    assert (found.outside_error == 0).all()


def test_without_alternatives_the_input_is_left(before: Scenes, exact: np.ndarray) -> None:
    none = np.zeros((N, 0, *exact.shape[1:]), np.uint8)
    assert exact_judge.judge(exact, images(before), exact, none).success.all()
    assert not exact_judge.judge(images(before), images(before), exact, none).success.any()


def test_errors_say_what_is_wrong(before: Scenes, exact: np.ndarray, others: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"the region is empty"):
        exact_judge.judge(exact, exact, exact, others)
    with pytest.raises(ValueError, match=r"alternative 0 of edit 0 equals the exact result"):
        exact_judge.judge(exact, images(before), exact, np.stack([exact], 1))
    with pytest.raises(ValueError, match=r"output must be uint8"):
        exact_judge.judge(exact.astype(np.float32), images(before), exact, others)
    with pytest.raises(ValueError, match=r"region must be bool"):
        exact_judge.judge(exact, images(before), exact, others, np.ones(exact.shape, bool))
    with pytest.raises(ValueError, match=r"alternatives must be one array an edit"):
        exact_judge.judge(exact, images(before), exact, others[:3])


def test_a_right_edit_that_loses_another_object_fails() -> None:
    change = local(numbers("held_out", 0, 200))
    rows = np.arange(200)
    other = (change.slots + 1) % 3
    two = change.target.present[rows, other]
    damaged = change.target.edited(rows, other, kind=EMPTY)
    pictures = [images(some)[two] for some in (damaged, change.source, change.target)]
    found = exact_judge.judge(*pictures, np.zeros((two.sum(), 0, 64, 64, 3), np.uint8))
    assert two.sum() > 40
    assert (found.nearest == exact_judge.EXACT).all()
    assert found.success.mean() < 0.1  # what is left: white on fog, brown at night
    assert sum("window" in reason for reason in found.reason) > 0.85 * two.sum()
