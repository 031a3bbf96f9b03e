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
N_PERMUTATIONS = 999
"""Of a permutation test: the smallest p-value is 0.001."""
_ROUNDING = 1e-8
"""Rounding error of a CMMD: a permutation that exchanges the two samples has the same one."""


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
    in_x = np.arange(len(x) + len(y))[None] < len(x)
    return float(_mmd_squared(_kernel(np.concatenate([x, y])), in_x.astype(float))[0])


def cmmd_p_value(x: FloatArray, y: FloatArray) -> float:
    """p-value in (0, 1] of the CMMD, under the hypothesis that both samples have the same distribution.

    Seeded permutation test (Gretton et al. 2012): (1 + permutations with at least this CMMD) / (1 + permutations).
    """
    kernel, n = _kernel(np.concatenate([x, y])), len(x)
    random = rng("cmmd", len(x), len(y))
    orders = [np.arange(len(kernel)), *(random.permutation(len(kernel)) for _ in range(N_PERMUTATIONS))]
    in_x = np.zeros((len(orders), len(kernel)))
    np.put_along_axis(in_x, np.stack([order[:n] for order in orders]), 1.0, axis=1)
    observed, *permuted = _mmd_squared(kernel, in_x)
    return (1 + sum(value >= observed - _ROUNDING for value in permuted)) / len(orders)


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


def _mmd_squared(kernel: FloatArray, in_x: FloatArray) -> FloatArray:
    """CMMD of P splits of N + M vectors into two samples, [P]; in_x: 1 for rows of the first, 0 for others, [P, N + M]."""
    n, m = in_x[0].sum(), (1 - in_x[0]).sum()
    to_x = in_x @ kernel  # sums of the kernel to the rows of x
    xx, xy = (to_x * in_x).sum(1), (to_x * (1 - in_x)).sum(1)
    yy = kernel.sum() - xx - 2 * xy
    within_x, within_y = (xx - n) / (n * (n - 1)), (yy - m) / (m * (m - 1))  # k(a, a) = 1
    return np.asarray(SCALE * (within_x + within_y - 2 * xy / (n * m)))
