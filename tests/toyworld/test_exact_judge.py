from dataclasses import replace

import numpy as np
import pytest

from toyworld.edits import exact_judge
from toyworld.edits.scene_changes import local
from toyworld.scenes.palette import COLOURS
from toyworld.scenes.render import images
from toyworld.scenes.scene import EMPTY, Scenes, generate_scenes, scene_numbers

N = 12
SLOT_0, SLOT_1 = np.zeros(N, int), np.ones(N, int)


@pytest.fixture(scope="module")
def before() -> Scenes:
    """Clear photos with at least two objects, without textures. The tests recolour the object in slot 0."""
    scenes = generate_scenes(scene_numbers("held_out", 0, 600))
    is_suitable = (scenes.count >= 2) & (scenes.condition == 0) & (scenes.style == 0) & (scenes.background != 0)
    chosen = scenes[np.flatnonzero(is_suitable)[:N]]
    return replace(chosen, texture=np.zeros_like(chosen.texture))


def recolour(before: Scenes, slots: np.ndarray, shift: int) -> np.ndarray:
    """Images with another colour of the object; `shift` 0 is the requested colour."""
    rows = np.arange(N)
    colour = (before.colour[rows, slots] + 2 + shift) % len(COLOURS)
    return images(before.replace_fields(rows, slots, colour=colour))


@pytest.fixture(scope="module")
def exact(before: Scenes) -> np.ndarray:
    return recolour(before, SLOT_0, 0)


@pytest.fixture(scope="module")
def alternatives(before: Scenes) -> np.ndarray:
    return np.stack([recolour(before, SLOT_0, k) for k in (1, 2, 3)], 1)


def judge(output: np.ndarray, before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> exact_judge.Judgement:
    return exact_judge.judge(output, images(before), exact, alternatives)


def test_accepts_the_exact_result(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    judgement = judge(exact, before, exact, alternatives)
    assert judgement.success.all()
    assert (judgement.inside_error == 0).all()
    assert (judgement.outside_error == 0).all()
    assert set(judgement.reason) == {""}


def test_accepts_a_slightly_noisy_result(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 8, exact.shape)
    noisy = (exact + noise).clip(0, 255).astype(np.uint8)
    assert judge(noisy, before, exact, alternatives).success.all()


def test_rejects_the_input(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    judgement = judge(images(before), before, exact, alternatives)
    assert not judgement.success.any()
    assert (judgement.nearest == exact_judge.INPUT).all()
    assert all("nothing was edited" in reason for reason in judgement.reason)


def test_rejects_an_alternative(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    judgement = judge(alternatives[:, 1], before, exact, alternatives)
    assert not judgement.success.any()
    assert (judgement.nearest == 3).all()
    assert judgement.reason[0].endswith("alternative 1")


def test_rejects_the_edit_of_another_object(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    judgement = judge(recolour(before, SLOT_1, 0), before, exact, alternatives)
    assert not judgement.success.any()
    assert (judgement.nearest == exact_judge.INPUT).all()


def test_rejects_a_damaged_background(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    region = exact_judge.edit_region(images(before), exact)
    damaged = np.where(region[..., None], exact, exact // 4 * 3)
    judgement = judge(damaged, before, exact, alternatives)
    assert (judgement.nearest == exact_judge.EXACT).all()
    assert not judgement.success.any()
    assert all("outside" in reason for reason in judgement.reason)
    lenient = exact_judge.judge(damaged, images(before), exact, alternatives, max_outside_l1=0.5, max_window_l1=1.0)
    assert lenient.success.all()


def test_an_edit_of_the_whole_image_has_no_outside(before: Scenes, exact: np.ndarray) -> None:
    night, fog, rain = (images(replace(before, condition=before.condition + k)) for k in (1, 2, 3))
    everywhere = np.ones(exact.shape[:3], bool)
    judgement = exact_judge.judge(night, images(before), night, np.stack([fog, rain], 1), everywhere)
    assert judgement.success.all()
    assert (judgement.outside_error == 0).all()


def test_without_alternatives_the_input_is_still_rejected(before: Scenes, exact: np.ndarray) -> None:
    no_alternatives = np.zeros((N, 0, *exact.shape[1:]), np.uint8)
    assert exact_judge.judge(exact, images(before), exact, no_alternatives).success.all()
    assert not exact_judge.judge(images(before), images(before), exact, no_alternatives).success.any()


def test_errors_name_the_wrong_argument(before: Scenes, exact: np.ndarray, alternatives: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"want a non-empty region"):
        exact_judge.judge(exact, exact, exact, alternatives)
    with pytest.raises(ValueError, match=r"alternative 0 of edit 0 equals the exact result"):
        exact_judge.judge(exact, images(before), exact, np.stack([exact], 1))
    with pytest.raises(ValueError, match=r"output must be uint8"):
        exact_judge.judge(exact.astype(np.float32), images(before), exact, alternatives)
    with pytest.raises(ValueError, match=r"region must be bool"):
        exact_judge.judge(exact, images(before), exact, alternatives, np.ones(exact.shape, bool))
    with pytest.raises(ValueError, match=r"alternatives must be one array per edit"):
        exact_judge.judge(exact, images(before), exact, alternatives[:3])


@pytest.mark.slow
def test_rejects_a_right_edit_that_loses_another_object() -> None:
    change = local(scene_numbers("held_out", 0, 200))
    rows = np.arange(200)
    other_slot = (change.slots + 1) % 3
    has_other_object = change.target.present[rows, other_slot]
    damaged = change.target.replace_fields(rows, other_slot, kind=EMPTY)
    output, before, exact = (images(scenes)[has_other_object] for scenes in (damaged, change.source, change.target))
    n_edits = has_other_object.sum()
    judgement = exact_judge.judge(output, before, exact, np.zeros((n_edits, 0, 64, 64, 3), np.uint8))
    assert n_edits > 40
    assert (judgement.nearest == exact_judge.EXACT).all()
    assert judgement.success.mean() < 0.1  # the exceptions have little contrast: white in fog, brown at night
    assert sum("window" in reason for reason in judgement.reason) > 0.85 * n_edits
