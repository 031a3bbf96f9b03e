"""Thresholds proposed from pairs whose truth is known: the most recall at a wanted precision, with few gates.

The truth comes from whoever has it: the toy world's oracle, or people who looked at some hundred pairs. Ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Scores = Mapping[str, npt.NDArray[np.float64]]
Edge = Literal["min", "max"]
LEVELS = 25
"""Thresholds tried of each score and edge: quantiles of the right pairs, so that none lies where nothing is."""
STEP = 0.01
"""By how much a precision that cannot be had is lowered."""
WORTH = 0.01
"""Least gain in the quality of a choice for which one more gate is taken: fewer gates fit less noise."""


@dataclass(frozen=True)
class ScoreBound:
    """One bound of one score; a pair passes on the bound. A score that is undefined (NaN) does not pass."""

    score: str
    edge: Edge
    bound: float

    def passes(self, scores: Scores) -> npt.NDArray[np.bool_]:
        """bool [N]."""
        value = scores[self.score]
        return np.asarray(value >= self.bound if self.edge == "min" else value <= self.bound)


@dataclass(frozen=True)
class SelectionQuality:
    """How well a choice of N pairs hits the right ones; None where nothing is chosen, or nothing is right."""

    kept: float
    precision: float | None
    recall: float | None


def selection_quality(chosen: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> SelectionQuality:
    """Share that is chosen, of it the share that is right, and of the right ones the share that is chosen; bool [N]."""
    hits = float((chosen & right).sum())
    n_chosen, n_right = int(chosen.sum()), int(right.sum())
    return SelectionQuality(
        kept=n_chosen / max(len(right), 1),
        precision=hits / n_chosen if n_chosen else None,
        recall=hits / n_right if n_right else None,
    )


def halves(groups: npt.NDArray[np.str_]) -> npt.NDArray[np.bool_]:
    """bool [N]: True for the half to choose thresholds on. What shares a group (hex digits) stays together."""
    return np.array([int(str(group)[-6:], 16) % 2 == 0 for group in groups], bool)


def search_filters(
    scores: Scores, right: npt.NDArray[np.bool_], edges: Mapping[str, Sequence[Edge]], wanted: float, most: int = 3
) -> tuple[ScoreBound, ...]:
    """At most `most` gates for N pairs: the highest recall at precision >= `wanted`, else the highest precision.

    `scores`: [N] each, NaN where undefined; `right`: bool [N]; `edges`: the bounds that make sense of each score (one that
    is not named is not used). Precision is counted as if one more wrong pair had been
    chosen, so that a handful of lucky pairs does not win. All pairs of gates are tried, then single ones are added.
    Empty where no gate is worth it. Raises ValueError unless 0 < wanted < 1 and there is a right pair.
    """
    if not 0 < wanted < 1 or not right.any():
        raise ValueError(f"want 0 < wanted < 1 and at least one right pair, got {wanted} and {int(right.sum())} of {len(right)}")
    tried = _gates(scores, right, edges)
    passes = np.array([gate.passes(scores) for gate in tried], np.float64).reshape(len(tried), len(right))
    chosen: tuple[int, ...] = ()
    best = float(_quality(np.array([right.sum()]), np.array([len(right)]), int(right.sum()), wanted)[0])
    for size in range(1, most + 1):
        found, quality = _best(passes, right, chosen, size, wanted)
        if quality > best + WORTH:
            chosen, best = found, quality
    return tuple(tried[i] for i in sorted(set(chosen)))


def search_with_recall(
    scores: Scores,
    right: npt.NDArray[np.bool_],
    edges: Mapping[str, Sequence[Edge]],
    wanted: float,
    least_recall: float,
    most: int = 3,
) -> tuple[ScoreBound, ...]:
    """As `search_filters`, but the wanted precision comes down, a hundredth at a time, until the recall is at least `least_recall`."""
    while wanted > STEP:
        gates = search_filters(scores, right, edges, wanted, most)
        passed = np.all([gate.passes(scores) for gate in gates] + [np.ones(len(right), bool)], 0)
        if (selection_quality(passed, right).recall or 0) >= least_recall:
            return gates
        wanted -= STEP
    return ()


def _gates(scores: Scores, right: npt.NDArray[np.bool_], edges: Mapping[str, Sequence[Edge]]) -> list[ScoreBound]:
    """Every gate worth trying: it rejects something, and not every right pair. Bounds have two digits that count."""
    shares = {"min": np.linspace(0, 0.6, LEVELS), "max": np.linspace(1, 0.4, LEVELS)}
    made = []
    for name, value in sorted(scores.items()):
        good = value[right & ~np.isnan(value)]
        for edge in edges.get(name, ()) if len(good) else ():
            for bound in sorted({float(f"{level:.2g}") for level in np.quantile(good, shares[edge])}):
                gate = ScoreBound(name, edge, bound)
                passed = gate.passes(scores)
                if passed.any() and not passed.all():
                    made.append(gate)
    return made


def _best(
    passes: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], chosen: tuple[int, ...], size: int, wanted: float
) -> tuple[tuple[int, ...], float]:
    """The best set of up to `size` gates: all singles and all pairs are tried; a third and further join what was chosen."""
    if not len(passes):
        return (), -np.inf
    if size == 2:
        rows = passes
    else:
        rows = np.prod(passes[list(chosen)], 0, keepdims=True) if chosen and size > 2 else np.ones((1, len(right)))
    hits, kept = (rows * right) @ passes.T, rows @ passes.T  # [1 or G, G]
    quality = _quality(hits, kept, int(right.sum()), wanted)
    i, j = np.unravel_index(int(quality.argmax()), quality.shape)
    before = (int(i),) if size == 2 else (chosen if size > 2 else ())
    return (*before, int(j)), float(quality[i, j])


def _quality(
    hits: npt.NDArray[np.float64], kept: npt.NDArray[np.float64], n_right: int, wanted: float
) -> npt.NDArray[np.float64]:
    """1 + recall where the precision is as wanted; else below 1, the nearer to it the better, a little for recall."""
    precision, recall = hits / (kept + 1), hits / n_right
    short = precision / wanted * np.clip(recall / 0.3, 0, 1)  # a precision that keeps next to nothing is worth nothing
    return np.asarray(np.where((precision >= wanted) & (recall > 0), 1 + recall, short))
