import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness.filter_search")


@pytest.fixture
def pairs() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """400 pairs, right when `likeness` is high and `moved` is low; `noise` is irrelevant; some scores are undefined."""
    random = np.random.default_rng(0)
    scores = {name: random.random(400) for name in ("likeness", "moved", "noise")}
    scores["moved"][:10] = np.nan
    return scores, (scores["likeness"] > 0.3) & (scores["moved"] < 0.6)


def kept_by(bounds: tuple[Any, ...], scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.all([bound.passes(scores) for bound in bounds] + [np.ones(400, bool)], 0)


def test_the_two_relevant_bounds_are_found(search: ModuleType, pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, right = pairs
    bounds = search.search_filters(scores, right, {"likeness": ("min",), "moved": ("min", "max"), "noise": ("min", "max")}, 0.95)
    assert {(bound.score, bound.edge) for bound in bounds} == {("likeness", "min"), ("moved", "max")}
    quality = search.selection_quality(kept_by(bounds, scores), right)
    assert quality.precision is not None
    assert quality.recall is not None
    assert quality.precision >= 0.95
    assert quality.recall >= 0.95


def test_higher_precision_lowers_recall(search: ModuleType, pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, right = pairs
    right = right ^ (np.random.default_rng(1).random(400) < 0.15 * (1 - scores["likeness"]))
    edges = {"likeness": ("min",), "moved": ("max",)}
    loose, strict = (
        search.selection_quality(kept_by(search.search_filters(scores, right, edges, precision), scores), right)
        for precision in (0.8, 0.94)
    )
    assert (strict.precision or 0) > (loose.precision or 0) >= 0.8
    assert (loose.recall or 0) > (strict.recall or 0) > 0.3


def test_no_bounds_when_none_helps(search: ModuleType, pairs: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    scores, _ = pairs
    assert search.search_filters(scores, np.ones(400, bool), {"noise": ("min",)}, 0.95) == ()
    assert search.search_filters(scores, scores["noise"] > 0.5, {}, 0.95) == ()


@pytest.mark.parametrize(("min_precision", "n_right"), [(0.0, 5), (1.0, 5), (0.9, 0)])
def test_invalid_precisions_and_labels_are_refused(search: ModuleType, min_precision: float, n_right: int) -> None:
    with pytest.raises(ValueError, match="want 0 < min_precision < 1 and at least one correct pair"):
        search.search_filters({"a": np.zeros(9)}, np.arange(9) < n_right, {"a": ("min",)}, min_precision)


def test_selection_quality_counts(search: ModuleType) -> None:
    kept, right = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    assert search.selection_quality(kept, right) == search.SelectionQuality(0.6, 2 / 3, 2 / 3)
    assert search.selection_quality(kept & False, right) == search.SelectionQuality(0.0, None, 0.0)


def test_a_group_is_in_one_half(search: ModuleType) -> None:
    groups = np.array([f"{i * 7919:016x}" for i in range(300)])
    calibration = search.calibration_half(np.concatenate([groups, groups]))
    np.testing.assert_array_equal(calibration[:300], calibration[300:])
    assert 100 < calibration[:300].sum() < 200
