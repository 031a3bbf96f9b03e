"""The training order of pairs: the batch of a step is a closed-form function of (seed, step), so resuming needs no replay.

A cell is a task in a bucket: pairs of one task whose images have one size. Four rules, all ours:
1. The share of a task is proportional to (its pairs)^task_balance times its weight; it is divided among its cells in proportion
   to their pairs.
2. A cell uses its pairs in a new permutation per pass: a pair is repeated only after all other pairs of the cell were used.
3. In an epoch, which has about as many samples as there are pairs, the samples of a cell are spread evenly.
4. A batch has images of one size: batches are divided among the buckets, then the samples of a bucket among its cells.

`apportion` divides all steps since the start, so rounding does not favour a cell, even with short epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.runtime import rng

SHARE_UNIT = 2**40
"""Shares are integers, in units of 1 / SHARE_UNIT, so that `apportion` is exact and equal on every machine."""


class PairOrderError(ValueError):
    """Raised for invalid weights and for weights that exclude all pairs."""


@dataclass(frozen=True)
class _Cell:
    """The pairs of a task in a bucket."""

    key: int  # key of its permutations
    positions: NDArray[np.int64]  # of its pairs
    share: int  # of all samples, in units of 1 / SHARE_UNIT


class PairOrder:
    """The order of M pairs in batches of B. The plan of the current epoch is cached; a step is then a look-up."""

    def __init__(
        self,
        task: NDArray[Any],
        bucket: NDArray[Any],
        batch_size: int,
        task_balance: float,
        task_weights: Sequence[float],
        seed: int,
    ) -> None:
        """`task` and `bucket`, [M]: index from 0 of each pair. `task_weights`: a factor >= 0 for each task.

        Raises PairOrderError for negative or non-finite weights, or if all tasks with pairs have weight zero.
        """
        weights = np.array(task_weights, np.float64)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise PairOrderError(f"want task weights that are finite and >= 0, got {weights.tolist()}")
        counts = np.bincount(task, minlength=len(weights))
        shares = np.where(counts > 0, counts.astype(np.float64) ** task_balance * weights, 0.0)  # rule 1
        if not shares.sum() > 0:
            raise PairOrderError("want a task weight > 0 for a task with pairs, got none; raise one of them")
        self.batch_size, self.seed = batch_size, seed
        self.batches_per_epoch = max(1, len(task) // batch_size)
        cell = bucket.astype(np.int64) * len(weights) + task
        by_cell = np.argsort(cell, kind="stable")
        keys, starts = np.unique(cell[by_cell], return_index=True)
        self._buckets: dict[int, list[_Cell]] = {}
        for key, positions in zip(keys.tolist(), np.split(by_cell, starts[1:]), strict=True):
            number, row = divmod(key, len(weights))
            share = shares[row] / shares.sum() * len(positions) / counts[row]
            if share > 0:
                self._buckets.setdefault(number, []).append(_Cell(key, positions, max(1, round(share * SHARE_UNIT))))
        self._planned: tuple[int, NDArray[np.int64], NDArray[np.bool_]] | None = None

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(positions of the pairs [B], whether to mirror each [B]) of a step, counted from 0."""
        epoch, index = divmod(step, self.batches_per_epoch)
        planned = self._planned
        if planned is None or planned[0] != epoch:
            planned = self._planned = (epoch, *self._plan(epoch))
        _, positions, flip = planned  # read once: another thread may replace the plan
        return positions[index], flip[index]

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(positions, whether to mirror) of all batches of an epoch, [batches of an epoch, B] each."""
        random = rng("editor", "order", self.seed, epoch)
        shares = [sum(cell.share for cell in cells) for cells in self._buckets.values()]
        first, last = (apportion(shares, number * self.batches_per_epoch) for number in (epoch, epoch + 1))
        batches = [
            self._samples(cells, start * self.batch_size, end * self.batch_size, random).reshape(-1, self.batch_size)
            for cells, start, end in zip(self._buckets.values(), first, last, strict=True)
        ]
        positions = np.concatenate(batches)[_spread([len(part) for part in batches], random)]
        return positions, random.random(positions.shape) < 0.5

    def _samples(self, cells: Sequence[_Cell], first: int, last: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Positions of the samples `first` to `last` - 1 of a bucket, counted from the first step."""
        shares = [cell.share for cell in cells]
        starts, ends = apportion(shares, first), apportion(shares, last)
        walks = [self._walk(cell, start, end) for cell, start, end in zip(cells, starts, ends, strict=True)]
        return np.concatenate(walks)[_spread([len(walk) for walk in walks], random)]

    def _walk(self, cell: _Cell, first: int, last: int) -> NDArray[np.int64]:
        """Positions of the samples `first` to `last` - 1 of a cell: rule 2."""
        size = len(cell.positions)
        passes = range(first // size, -(-last // size))
        orders = [rng("editor", "pass", self.seed, cell.key, number).permutation(cell.positions) for number in passes]
        return np.concatenate([cell.positions[:0], *orders])[first - passes.start * size :][: last - first]


def apportion(shares: Sequence[int], n: int) -> list[int]:
    """Divide n items in proportion to K integer shares > 0, by Webster's method: K counts that sum to n.

    Item s (from 0) of share k is due at time (s + 1/2) / share_k; the n earliest items are counted, ties in the order of the
    shares. So no count decreases as n grows.
    """
    total = sum(shares)
    counts = [(2 * n * share + total) // (2 * total) for share in shares]  # all items due by n / total
    while sum(counts) < n:
        k = min(range(len(shares)), key=lambda k: (Fraction(2 * counts[k] + 1, shares[k]), k))
        counts[k] += 1
    while sum(counts) > n:
        k = max((k for k in range(len(shares)) if counts[k]), key=lambda k: (Fraction(2 * counts[k] - 1, shares[k]), k))
        counts[k] -= 1
    return counts


def _spread(counts: Sequence[int], random: np.random.Generator) -> NDArray[np.int64]:
    """An order of sum(counts) items, grouped by kind: each kind is spread evenly, with jitter (rule 3)."""
    times = [(np.arange(count) + random.random(count)) / max(1, count) for count in counts]
    return np.argsort(np.concatenate(times), kind="stable")
