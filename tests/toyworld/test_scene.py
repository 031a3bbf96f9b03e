"""Scenes are pure functions of their numbers and satisfy the constraints of the generator."""

import numpy as np
import pytest

from toyworld.scenes.palette import ALLOWED_COLOURS, BIG_RADIUS, CARD, CONDITIONS, KINDS, STYLES
from toyworld.scenes.scene import Scenes, concat, generate_scenes, pick, scene_numbers, uniform


@pytest.fixture(scope="module")
def train_scenes() -> Scenes:
    return generate_scenes(scene_numbers("train", 0, 6000))


def test_a_scene_depends_on_its_number_only(train_scenes: Scenes) -> None:
    selection = generate_scenes(train_scenes.number[[5, 77, 3]])
    for name in Scenes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(selection, name), getattr(train_scenes, name)[[5, 77, 3]])
    joined = concat([train_scenes[:10], train_scenes[10:20]])
    np.testing.assert_array_equal(joined.kind, train_scenes[:20].kind)


def test_the_splits_are_disjoint_and_complete() -> None:
    train, held_out = scene_numbers("train", 0, 9000), scene_numbers("held_out", 0, 1000)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(range(10_000))
    assert len(set(train)) == 9000
    with pytest.raises(ValueError, match="'train' or 'held_out', got 'test'"):
        scene_numbers("test", 0, 1)


def test_every_attribute_value_occurs(train_scenes: Scenes) -> None:
    present = train_scenes.present
    assert set(train_scenes.count) == {0, 1, 2, 3}
    for name, size in (("kind", 10), ("colour", 10), ("texture", 4), ("cell", 5)):
        assert set(getattr(train_scenes, name)[present]) == set(range(size)), name
    assert set(train_scenes.background) == set(range(8))
    assert set(train_scenes.condition) == set(range(len(CONDITIONS)))
    assert set(train_scenes.style) == set(range(len(STYLES)))
    assert set(train_scenes.variant[present & (train_scenes.kind == CARD)]) == set(range(8))


def test_objects_are_inside_separate_distinct_and_visible(train_scenes: Scenes) -> None:
    scenes, present = train_scenes, train_scenes.present
    assert (scenes.x - scenes.radius)[present].min() >= 0
    assert (scenes.x + scenes.radius)[present].max() <= 63
    for a in range(3):
        for b in range(a):
            both = present[:, a] & present[:, b]
            distance = np.hypot(scenes.x[both, a] - scenes.x[both, b], scenes.y[both, a] - scenes.y[both, b])
            assert (distance >= scenes.radius[both, a] + scenes.radius[both, b] - 5).all()
            assert (scenes.kind[both, a] != scenes.kind[both, b]).all()
            assert (scenes.cell[both, a] != scenes.cell[both, b]).all()
    for s in range(3):
        assert ALLOWED_COLOURS[scenes.background[present[:, s]], scenes.colour[present[:, s], s]].all()


def test_only_big_objects_have_fine_detail(train_scenes: Scenes) -> None:
    special = train_scenes.present & (train_scenes.kind >= CARD)
    textured = train_scenes.present & (train_scenes.texture > 0)
    assert (train_scenes.radius[special | textured] >= BIG_RADIUS).all()
    assert not (textured & special).any()
    assert KINDS[CARD] == "card"


def test_hash_is_uniform_and_fields_are_independent() -> None:
    number = np.arange(50_000)
    a, b = uniform(number, "one"), uniform(number, "other")
    assert abs(a.mean() - 0.5) < 0.01
    assert abs(a.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert a.max() < 1


def test_pick_follows_the_weights() -> None:
    number = np.arange(20_000)
    samples = pick(number, "field", np.array([0.0, 1.0, 3.0, 0.0]))
    assert set(samples) == {1, 2}
    assert abs((samples == 2).mean() - 0.75) < 0.02
    rows = np.stack([number % 2 == 0, number % 2 == 1], 1)
    np.testing.assert_array_equal(pick(number, "field", rows), number % 2)
