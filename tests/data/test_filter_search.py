import numpy as np
import pytest

from emuedit.data import filter_search as filter_search
from emuedit.data.filter_search import ScoreBound, halves, search_filters, selection_quality


@pytest.fixture
def pairs() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """400 pairs: right where `likeness` is high and `moved` low; `noise` says nothing; some scores are undefined."""
    chance = np.random.default_rng(0)
    scores = {name: chance.random(400) for name in ("likeness", "moved", "noise")}
    scores["moved"][:10] = np.nan
    return scores, (scores["likeness"] > 0.3) & (scores["moved"] < 0.6)


def passed(gates: tuple[ScoreBound, ...], scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.all([gate.passes(scores) for gate in gates] + [np.ones(400, bool)], 0)


def test_the_two_gates_that_matter_are_found(pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, right = pairs
    gates = search_filters(scores, right, {"likeness": ("min",), "moved": ("min", "max"), "noise": ("min", "max")}, 0.95)
    assert {(gate.score, gate.edge) for gate in gates} == {("likeness", "min"), ("moved", "max")}
    reached = selection_quality(passed(gates, scores), right)
    assert reached.precision is not None
    assert reached.recall is not None
    assert reached.precision >= 0.95
    assert reached.recall >= 0.95


def test_more_precision_costs_recall(pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, right = pairs
    right = right ^ (np.random.default_rng(1).random(400) < 0.15 * (1 - scores["likeness"]))
    edges = {"likeness": ("min",), "moved": ("max",)}
    loose, strict = (
        selection_quality(passed(search_filters(scores, right, edges, wanted), scores), right) for wanted in (0.8, 0.94)
    )  # type: ignore[arg-type]
    assert (strict.precision or 0) > (loose.precision or 0) >= 0.8
    assert (loose.recall or 0) > (strict.recall or 0) > 0.3


def test_nothing_is_proposed_where_nothing_helps(pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, _ = pairs
    assert search_filters(scores, np.ones(400, bool), {"noise": ("min",)}, 0.95) == ()
    assert search_filters(scores, scores["noise"] > 0.5, {}, 0.95) == ()


@pytest.mark.parametrize(("wanted", "n_right"), [(0.0, 5), (1.0, 5), (0.9, 0)])
def test_what_cannot_be_asked_is_named(wanted: float, n_right: int) -> None:
    with pytest.raises(ValueError, match="want 0 < wanted < 1 and at least one right pair"):
        search_filters({"a": np.zeros(9)}, np.arange(9) < n_right, {"a": ("min",)}, wanted)


def test_figures_count() -> None:
    chosen, right = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    assert selection_quality(chosen, right) == filter_search.SelectionQuality(0.6, 2 / 3, 2 / 3)
    assert selection_quality(chosen & False, right) == filter_search.SelectionQuality(0.0, None, 0.0)


def test_a_group_lies_in_one_half() -> None:
    groups = np.array([f"{i * 7919:016x}" for i in range(300)])
    first = halves(np.concatenate([groups, groups]))
    np.testing.assert_array_equal(first[:300], first[300:])
    assert 100 < first[:300].sum() < 200
