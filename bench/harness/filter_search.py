"""Search for filters on pairs with known labels: the highest recall at a minimum precision, with few score bounds.

The labels (is this pair correct?) come from the toy world's oracle, or from a few hundred manually checked pairs.
The search is ours, not the paper's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Scores = Mapping[str, npt.NDArray[np.float64]]
"""Score name -> value of each pair, [N]; NaN where undefined."""
Edge = Literal["min", "max"]
LEVELS = 25
"""Number of thresholds tried for each score and edge: quantiles of the scores of correct pairs."""
PRECISION_STEP = 0.01
"""Step by which the required precision is lowered until the wanted recall is reached."""
MIN_GAIN = 0.01
"""Minimum gain in quality to add another bound; fewer bounds overfit less."""
_QUANTILE_RANGE = {"min": (0.0, 0.6), "max": (1.0, 0.4)}
_FULL_CREDIT_RECALL = 0.3


@dataclass(frozen=True)
class ScoreBound:
    """One bound on one score. A pair whose score equals the bound passes; an undefined score (NaN) fails."""

    score: str
    edge: Edge
    bound: float

    def passes(self, scores: Scores) -> npt.NDArray[np.bool_]:
        """Which pairs pass, bool [N]."""
        value = scores[self.score]
        return np.asarray(value >= self.bound if self.edge == "min" else value <= self.bound)


@dataclass(frozen=True)
class SelectionQuality:
    """Share of kept pairs, precision (None when no pair is kept) and recall (None when no pair is correct)."""

    kept: float
    precision: float | None
    recall: float | None


def selection_quality(kept: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> SelectionQuality:
    """Measure a selection of N pairs; both arguments are bool [N]."""
    n_right_kept = float((kept & right).sum())
    n_kept, n_right = int(kept.sum()), int(right.sum())
    return SelectionQuality(
        kept=n_kept / max(len(right), 1),
        precision=n_right_kept / n_kept if n_kept else None,
        recall=n_right_kept / n_right if n_right else None,
    )


def calibration_half(groups: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """Split pairs in two halves; True for the half on which thresholds are chosen, bool [N].

    `groups`: group of each pair, as hex digits. Pairs of a group are in the same half.
    """
    return np.array([int(str(group)[-6:], 16) % 2 == 0 for group in groups], bool)


def search_filters(
    scores: Scores,
    right: npt.NDArray[np.bool_],
    edges: Mapping[str, Sequence[Edge]],
    min_precision: float,
    max_bounds: int = 3,
) -> tuple[ScoreBound, ...]:
    """Find at most `max_bounds` bounds with the highest recall at `min_precision`, or else with the highest precision.

    `right`: the labels, bool [N]. `edges`: the meaningful bounds of each score; other scores are not used.
    Precision is computed with one extra wrong pair, to penalise tiny selections. All single bounds and all pairs of
    bounds are tried; further bounds are added greedily. Returns () if no bound improves the selection. Raises ValueError unless
    0 < min_precision < 1 and at least one pair is correct.
    """
    if not 0 < min_precision < 1 or not right.any():
        raise ValueError(
            f"want 0 < min_precision < 1 and at least one correct pair, "
            f"got {min_precision} and {int(right.sum())} of {len(right)}; change the precision or label more pairs"
        )
    candidates = _candidate_bounds(scores, right, edges)
    passes = np.array([bound.passes(scores) for bound in candidates], np.float64).reshape(len(candidates), len(right))
    chosen: tuple[int, ...] = ()
    all_kept = (np.array([right.sum()]), np.array([len(right)]))
    best_quality = float(_quality(*all_kept, int(right.sum()), min_precision)[0])
    for size in range(1, max_bounds + 1):
        indices, quality = _best_combination(passes, right, chosen, size, min_precision)
        if quality > best_quality + MIN_GAIN:
            chosen, best_quality = indices, quality
    return tuple(candidates[index] for index in sorted(set(chosen)))


def search_with_recall(
    scores: Scores,
    right: npt.NDArray[np.bool_],
    edges: Mapping[str, Sequence[Edge]],
    min_precision: float,
    min_recall: float,
    max_bounds: int = 3,
) -> tuple[ScoreBound, ...]:
    """As `search_filters`, but lower the precision in steps of 0.01 until the recall is at least `min_recall`."""
    while min_precision > PRECISION_STEP:
        bounds = search_filters(scores, right, edges, min_precision, max_bounds)
        kept = np.all([bound.passes(scores) for bound in bounds] + [np.ones(len(right), bool)], 0)
        if (selection_quality(kept, right).recall or 0) >= min_recall:
            return bounds
        min_precision -= PRECISION_STEP
    return ()


def _candidate_bounds(scores: Scores, right: npt.NDArray[np.bool_], edges: Mapping[str, Sequence[Edge]]) -> list[ScoreBound]:
    """Bounds to try, rounded to two significant digits, without bounds that keep all pairs or none."""
    candidates = []
    for name, value in sorted(scores.items()):
        right_values = value[right & ~np.isnan(value)]
        for edge in edges.get(name, ()) if len(right_values) else ():
            quantiles = np.quantile(right_values, np.linspace(*_QUANTILE_RANGE[edge], LEVELS))
            for threshold in sorted({float(f"{quantile:.2g}") for quantile in quantiles}):
                bound = ScoreBound(name, edge, threshold)
                passed = bound.passes(scores)
                if passed.any() and not passed.all():
                    candidates.append(bound)
    return candidates


def _best_combination(
    passes: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], chosen: tuple[int, ...], size: int, min_precision: float
) -> tuple[tuple[int, ...], float]:
    """Indices and quality of the best combination of up to `size` bounds.

    `passes`: 0 or 1, [n_bounds, N]. For sizes 1 and 2 all combinations are tried; for larger sizes, `chosen` plus
    one bound.
    """
    if not len(passes):
        return (), -np.inf
    if size == 2:
        rows = passes
    else:
        rows = np.prod(passes[list(chosen)], 0, keepdims=True) if chosen and size > 2 else np.ones((1, len(right)))
    n_right_kept, n_kept = (rows * right) @ passes.T, rows @ passes.T  # [1 or n_bounds, n_bounds]
    quality = _quality(n_right_kept, n_kept, int(right.sum()), min_precision)
    row, column = np.unravel_index(int(quality.argmax()), quality.shape)
    others = (int(row),) if size == 2 else (chosen if size > 2 else ())
    return (*others, int(column)), float(quality[row, column])


def _quality(
    n_right_kept: npt.NDArray[np.float64], n_kept: npt.NDArray[np.float64], n_right: int, min_precision: float
) -> npt.NDArray[np.float64]:
    """Quality of selections: 1 + recall if the precision is reached; else below 1 and increasing with precision.

    This choice is ours.
    """
    precision, recall = n_right_kept / (n_kept + 1), n_right_kept / n_right
    recall_credit = np.clip(recall / _FULL_CREDIT_RECALL, 0, 1)  # penalises selections that keep almost nothing
    shortfall = precision / min_precision * recall_credit
    return np.asarray(np.where((precision >= min_precision) & (recall > 0), 1 + recall, shortfall))
