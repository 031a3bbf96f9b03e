"""Paired bootstrap of differences between two editors on the same edits, with percentile intervals.

Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_DECIMALS = 9
"""Digits to which means are rounded. Otherwise gains and losses of tasks that cancel out can have a mean of 1e-17, which is above
zero. Rounding errors are below 1e-15, and a difference below 1e-9 is none."""


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion, with its uncertainty."""

    mean: float
    low: float
    high: float
    """Bounds of the central interval that contains the difference with the given probability."""
    share_above: float
    """Share of the resamples above the threshold, in [0, 1]; a resample equal to it does not count."""


def resample_means(differences: Array, resamples: int, seed: int) -> Array:
    """Means of `resamples` draws with replacement from differences [N], each of N; [resamples]."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(differences), (resamples, len(differences)))
    means: Array = differences[draws].mean(axis=1)
    return means


def compare_paired(
    differences: Mapping[str, Sequence[float]], tasks: Sequence[str], confidence: float, resamples: int, threshold: float = 0.0
) -> Difference:
    """The mean over tasks of each task's mean difference; edits are resampled within their tasks.

    differences: task -> challenger minus champion, one value per edit, in the same order for both. Raises KeyError for a task
    without differences. The seeds are fixed, so equal outcomes give equal decisions.
    """
    values = [np.asarray(differences[task], dtype=np.float64) for task in tasks]
    means = _round(np.mean([resample_means(task_values, resamples, seed) for seed, task_values in enumerate(values)], axis=0))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(_round(np.mean([task_values.mean() for task_values in values])))
    return Difference(mean, float(low), float(high), float((means > threshold).mean()))


def _round(means: npt.ArrayLike) -> Array:
    """To `_DECIMALS`, as the floats nearest to these decimals, which compare exactly with settings such as 0.02; without -0.0."""
    rounded: Array = np.asarray(np.round(np.asarray(means, dtype=np.float64), _DECIMALS) + 0.0, dtype=np.float64)
    return rounded
