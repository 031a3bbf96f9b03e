"""Distances between two datasets: of their images, task mixes and words. N, M: images, D: width of an embedding."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, jensenshannon

from emuedit.runtime import rng

FloatArray = npt.NDArray[np.floating[Any]]
SIGMA, SCALE = 10.0, 1000.0
"""Kernel bandwidth and scale factor (Jayasumana et al. 2024, arXiv 2401.09603)."""
N_PERMUTATIONS = 100


def one_pair_per_source(embeddings: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The rows of a random pair of each distinct source image. embeddings: `source` and other sides, [N, D]; may be empty.

    All pairs of a caption share their source image, and their targets resemble it. The estimate and the test of CMMD want
    independent images: repeated ones count as similar within a sample, but never between two.
    """
    source = embeddings.get("source", np.zeros((0, 1)))
    order = rng("one pair per source", len(source)).permutation(len(source))
    _, first = np.unique(source[order], axis=0, return_index=True)
    rows = np.sort(order[first])
    return {side: vectors[rows] for side, vectors in embeddings.items()}


def cmmd(x: FloatArray, y: FloatArray) -> float:
    """CMMD between unit vectors float [N, D] and [M, D]: SCALE * MMD^2 with a Gaussian kernel; N, M >= 2.

    The unbiased estimate of Gretton et al. 2012 (JMLR 13, eq. 3), as used by Jayasumana et al. 2024; it may be slightly negative.
    The rows of each sample must be independent (`one_pair_per_source`), also for the p-value.
    """
    kernel = _kernel(np.concatenate([x, y]))
    return _mmd_squared(kernel, np.arange(len(x)), np.arange(len(x), len(kernel)))


def cmmd_p_value(x: FloatArray, y: FloatArray) -> float:
    """p-value in (0, 1] of the CMMD, under the hypothesis that both samples have the same distribution.

    Seeded permutation test (Gretton et al. 2012): (1 + permutations with at least this CMMD) / (1 + permutations).
    """
    kernel, n = _kernel(np.concatenate([x, y])), len(x)
    observed = _mmd_squared(kernel, np.arange(n), np.arange(n, len(kernel)))
    random = rng("cmmd", len(x), len(y))
    orders = (random.permutation(len(kernel)) for _ in range(N_PERMUTATIONS))
    n_as_large = sum(_mmd_squared(kernel, order[:n], order[n:]) >= observed for order in orders)
    return (1 + n_as_large) / (1 + N_PERMUTATIONS)


def task_divergence(counts: Mapping[str, int], reference: Mapping[str, int]) -> float:
    """Jensen-Shannon divergence between two task mixes in bit, in [0, 1] (Lin 1991, IEEE Trans. Inf. Theory 37)."""
    tasks = sorted({*counts, *reference})
    p, q = ([mix.get(task, 0) for task in tasks] for mix in (counts, reference))
    distance = float(jensenshannon(p, q, base=2))  # square root of the divergence
    return 0.0 if math.isnan(distance) else distance**2  # NaN: rounding errors of equal mixes


def new_words(words: Mapping[str, int], reference: Mapping[str, int]) -> dict[str, int]:
    """Words that are not in the reference, most frequent first."""
    unseen = {word: count for word, count in words.items() if word not in reference}
    return dict(sorted(unseen.items(), key=lambda item: (-item[1], item[0])))


def evenness(counts: Mapping[str, int]) -> float:
    """Evenness H / ln T of the counts of T tasks, in [0, 1]; 1 for a single task (Pielou 1966, J. Theor. Biol. 13)."""
    shares = np.array([count for count in counts.values() if count], float)
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(shares))) if len(shares) > 1 else 1.0


def _kernel(vectors: FloatArray) -> FloatArray:
    """k(a, b) = exp(-|a - b|^2 / (2 sigma^2)) of all pairs, [N + M, N + M]."""
    return np.asarray(np.exp(-cdist(vectors, vectors, "sqeuclidean") / (2 * SIGMA**2)))


def _mmd_squared(kernel: FloatArray, rows_x: npt.NDArray[np.intp], rows_y: npt.NDArray[np.intp]) -> float:
    n, m = len(rows_x), len(rows_y)
    k_xx, k_yy, k_xy = (kernel[np.ix_(a, b)] for a, b in ((rows_x, rows_x), (rows_y, rows_y), (rows_x, rows_y)))
    within_x = (k_xx.sum() - n) / (n * (n - 1))  # k(a, a) = 1
    within_y = (k_yy.sum() - m) / (m * (m - 1))
    return SCALE * float(within_x + within_y - 2 * k_xy.mean())
