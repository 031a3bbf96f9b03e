"""The judge of added objects refuses every attribute that the instruction names, and a box does not hide a wrong object."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from toyworld.edits import exact_targets, task_judge
from toyworld.edits.exact_edits import Edits, build_edits
from toyworld.edits.exact_judge import edit_region
from toyworld.edits.scene_changes import SceneChange, add
from toyworld.scenes import render
from toyworld.scenes.palette import CARD, COLOURS, LETTERS, PERSON, POSES, SHAPES, TEXTURES
from toyworld.scenes.scene import Scenes, scene_numbers

N = 6
"""Edits per case."""


def change_object(change: SceneChange, field: str, new_value: Callable[[np.ndarray], np.ndarray], **others: int) -> Scenes:
    """The targets with another value of a field of the added object."""
    at = (np.arange(len(change.slots)), change.slots)
    return change.target.replace_fields(*at, **{field: new_value(getattr(change.target, field)[at])}, **others)


CASES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "plain": ("texture", np.zeros_like),
    "texture": ("texture", lambda texture: texture % (len(TEXTURES) - 1) + 1),
    "letter": ("variant", lambda letter: (letter + 3) % len(LETTERS)),
    "pose": ("variant", lambda pose: (pose + 1) % len(POSES)),
}
"""What is wrong -> the changed field and its value in a wrong result."""


@cache
def changes_of(case: str) -> SceneChange:
    """N edits that add an object whose attribute the case changes."""
    numbers = scene_numbers("held_out", 0, 2500)
    change = add(numbers)
    at = (np.arange(len(numbers)), change.slots)
    kind, texture = change.target.kind[at], change.target.texture[at]
    return add(numbers[{"letter": kind == CARD, "pose": kind == PERSON}.get(case, texture > 0)][:N])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_added_object_with_another_detail_is_wrong(case: str) -> None:
    change = changes_of(case)
    before, exact = render.images(change.source), render.images(change.target)
    alternatives = np.stack([render.images(scenes) for scenes in change.alternatives], 1)
    wrong = render.images(change_object(change, *CASES[case]))
    assert len(before) == N
    assert not task_judge.judge_added_object(wrong, before, exact, alternatives).success.any()
    assert task_judge.judge_added_object(exact, before, exact, alternatives).success.all()


@pytest.fixture(scope="module")
def boxed() -> Edits:
    return build_edits("add_detect", "held_out", 0, N)


@pytest.fixture(scope="module")
def line(boxed: Edits) -> np.ndarray:
    """bool [N, 64, 64, 1]: the pixels of the exact box."""
    return (boxed.exact == (255, 0, 255)).all(-1, keepdims=True)


@pytest.mark.slow
def test_an_added_object_with_its_box_is_right(boxed: Edits) -> None:
    assert boxed.judge(boxed.exact).success.all()
    changed = edit_region(boxed.before, boxed.exact)
    assert not changed[:, :, :3].any(), "else a shifted object would be cut off"
    shifted = np.where(np.roll(changed, -2, 2)[..., None], np.roll(boxed.exact, -2, 2), boxed.before)
    assert boxed.judge(shifted).success.all()


@pytest.mark.slow
def test_half_of_an_added_object_with_its_box_is_wrong(boxed: Edits, line: np.ndarray) -> None:
    assert not boxed.judge(np.where(line, boxed.exact, boxed.before)).success.any(), "only the box"
    assert not boxed.judge(np.where(line, boxed.before, boxed.exact)).success.any(), "only the object"
    assert not boxed.judge(boxed.before).success.any()


@pytest.mark.slow
def test_a_box_does_not_hide_a_wrong_object(boxed: Edits, line: np.ndarray) -> None:
    change = add(boxed.numbers)
    wrong = {
        "colour": change_object(change, "colour", lambda colour: (colour + 1) % len(COLOURS)),
        "kind": change_object(change, "kind", lambda kind: (kind + 2) % len(SHAPES), variant=0, texture=0),
    }
    for name, scenes in wrong.items():
        truth = render.truth(scenes)
        assert not boxed.judge(np.where(line, boxed.exact, truth.images)).success.any(), name
        assert not boxed.judge(exact_targets.detect(truth, change.slots)).success.any(), f"{name} in a box of its size"
