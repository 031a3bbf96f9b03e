"""Scenes are pure functions of their numbers, and hold what the grammar promises."""

import numpy as np
import pytest

from toyworld.scenes.palette import ALLOWED_COLOURS, BIG_RADIUS, CARD, CONDITIONS, KINDS, STYLES
from toyworld.scenes.scene import Scenes, concat, numbers, pick, scenes, uniform


@pytest.fixture(scope="module")
def many() -> Scenes:
    return scenes(numbers("train", 0, 6000))


def test_a_scene_depends_on_its_number_only(many: Scenes) -> None:
    some = scenes(many.number[[5, 77, 3]])
    for name in Scenes.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(some, name), getattr(many, name)[[5, 77, 3]])
    joined = concat([many[:10], many[10:20]])
    np.testing.assert_array_equal(joined.kind, many[:20].kind)


def test_the_splits_never_meet() -> None:
    train, held_out = numbers("train", 0, 9000), numbers("held_out", 0, 1000)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(range(10_000))
    assert len(set(train)) == 9000
    with pytest.raises(ValueError, match="'train' or 'held_out', got 'test'"):
        numbers("test", 0, 1)


def test_every_value_turns_up(many: Scenes) -> None:
    present = many.present
    assert set(many.count) == {0, 1, 2, 3}
    for name, size in (("kind", 10), ("colour", 10), ("texture", 4), ("cell", 5)):
        assert set(getattr(many, name)[present]) == set(range(size)), name
    assert set(many.background) == set(range(8))
    assert set(many.condition) == set(range(len(CONDITIONS)))
    assert set(many.style) == set(range(len(STYLES)))
    assert set(many.variant[present & (many.kind == CARD)]) == set(range(8))


def test_objects_stay_inside_apart_distinct_and_visible(many: Scenes) -> None:
    p = many.present
    assert (many.x - many.radius)[p].min() >= 0
    assert (many.x + many.radius)[p].max() <= 63
    for a in range(3):
        for b in range(a):
            both = p[:, a] & p[:, b]
            gap = np.hypot(many.x[both, a] - many.x[both, b], many.y[both, a] - many.y[both, b])
            assert (gap >= many.radius[both, a] + many.radius[both, b] - 5).all()
            assert (many.kind[both, a] != many.kind[both, b]).all()
            assert (many.cell[both, a] != many.cell[both, b]).all()
    for s in range(3):
        assert ALLOWED_COLOURS[many.background[p[:, s]], many.colour[p[:, s], s]].all()


def test_fine_detail_only_where_there_is_room(many: Scenes) -> None:
    special = many.present & (many.kind >= CARD)
    textured = many.present & (many.texture > 0)
    assert (many.radius[special | textured] >= BIG_RADIUS).all()
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
    drawn = pick(number, "field", np.array([0.0, 1.0, 3.0, 0.0]))
    assert set(drawn) == {1, 2}
    assert abs((drawn == 2).mean() - 0.75) < 0.02
    rows = np.stack([number % 2 == 0, number % 2 == 1], 1)
    np.testing.assert_array_equal(pick(number, "field", rows), number % 2)
