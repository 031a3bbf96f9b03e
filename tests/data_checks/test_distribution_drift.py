import itertools

import numpy as np
import pytest

from emuedit.data_checks import distribution_drift as drift
from tests.data_checks.profiles import make_vectors


def test_cmmd_is_the_sum_over_pairs_of_its_definition() -> None:
    x, y = make_vectors(1, 5)["source"].astype(float), make_vectors(2, 4, 0.5)["source"].astype(float)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 10**2)))

    within_x = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    within_y = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / (4 * 3)
    between = sum(k(a, b) for a in x for b in y) / (5 * 4)
    assert drift.cmmd(x, y) == pytest.approx(1000 * (within_x + within_y - 2 * between), rel=1e-9)


def test_cmmd_and_its_p_value_tell_a_shift_from_chance() -> None:
    x, same, shifted = (make_vectors(seed, shift=shift)["source"] for seed, shift in ((1, 0.0), (2, 0.0), (3, 0.8)))
    assert drift.cmmd_p_value(x, same) > 0.05
    assert drift.cmmd_p_value(x, shifted) <= 0.01
    assert drift.cmmd(x, shifted) > 5 * abs(drift.cmmd(x, same))
    assert drift.cmmd_p_value(x, shifted) == drift.cmmd_p_value(x, shifted)


def test_equal_images_have_no_cmmd_and_the_largest_p_value() -> None:
    x = make_vectors(1, 1)["source"].repeat(9, axis=0)
    assert drift.cmmd(x, x[:8]) == pytest.approx(0, abs=1e-9)
    assert drift.cmmd_p_value(x, x[:8]) == 1


def test_the_p_value_is_the_share_of_all_splits_with_at_least_this_cmmd() -> None:
    x, y = make_vectors(1, 4)["source"], make_vectors(2, 4, 0.7)["source"]
    both, rows = np.concatenate([x, y]), set(range(8))
    splits = [(list(first), sorted(rows - set(first))) for first in itertools.combinations(range(8), 4)]
    share = np.mean([drift.cmmd(both[first], both[second]) >= drift.cmmd(x, y) - 1e-9 for first, second in splits])
    assert 0.02 < share < 0.5
    assert drift.cmmd_p_value(x, y) == pytest.approx(share, abs=0.05)


def test_the_divergence_of_task_mixes_is_known_at_its_ends() -> None:
    assert drift.task_divergence({"a": 3, "b": 1}, {"a": 300, "b": 100}) == pytest.approx(0.0, abs=1e-12)
    assert drift.task_divergence({"a": 5}, {"b": 5}) == pytest.approx(1.0)
    # H(m) - (H(p) + H(q)) / 2 with p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4)
    entropy_of_mean = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert drift.task_divergence({"a": 7}, {"a": 2, "b": 2}) == pytest.approx(entropy_of_mean - 0.5)


def test_evenness_is_one_for_equal_counts_and_small_for_one_large_task() -> None:
    assert drift.evenness({"a": 10, "b": 10, "c": 10}) == pytest.approx(1.0)
    assert drift.evenness({"a": 1000, "b": 1}) < 0.02
    assert drift.evenness({"a": 10}) == 1.0


def test_new_words_are_those_that_the_reference_lacks_the_most_frequent_first() -> None:
    assert list(drift.new_words({"a": 9, "c": 1, "b": 1, "d": 5}, {"a": 1}).items()) == [("d", 5), ("b", 1), ("c", 1)]
