"""What lies over a whole picture: background, condition and style, by the nearest of many rendered references.

A picture becomes a row of statistics (quantiles of colour, of gradients, energies of frequencies) in which objects
matter little. The rows of rendered references say how much each statistic varies within one look; distances are
measured in that unit (Mahalanobis, pooled covariance), so nothing is fitted but a mean and a spread.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from toyworld.scenes import render
from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, SIZE, STYLES, luma
from toyworld.scenes.scene import numbers, scenes

LOOKS = np.array(
    [(b, c, 0) for b in range(len(BACKGROUNDS)) for c in range(len(CONDITIONS))]
    + [(b, 0, s) for b in range(len(BACKGROUNDS)) for s in range(1, len(STYLES))],
    np.int16,
)
"""[80, 3] every (background, condition, style) there is: weather is only photographed, styles only in clear weather."""

_REFERENCES = 40  # rendered pictures a look
_SOFT_PX = (0.0, 0.5, 0.8, 1.1)  # the references are blurred by these in turn: pictures to be read come through a decoder
_SHRINK = 0.02
_TEMPERATURE = 6.0  # squared distances are that many times too sure of themselves


@dataclass(frozen=True)
class Overall:
    """What was found of N pictures."""

    look: np.ndarray  # [N] row of LOOKS
    confidence: np.ndarray  # [N, 3] in [0, 1], of background, condition, style


def recognise(pictures: np.ndarray) -> Overall:
    """The nearest look of each of `[N, 64, 64, 3]` float32 pictures in [0, 1]."""
    mean, whiten, usual = _bank()
    rows = statistics(pictures) @ whiten
    distance = ((rows[:, None] - mean[None]) ** 2).sum(-1)  # [N, 80]
    best = distance.argmin(1)
    likely = np.exp(-0.5 * (distance - distance.min(1, keepdims=True)) / _TEMPERATURE)
    likely /= likely.sum(1, keepdims=True)
    same = LOOKS[best][:, None] == LOOKS[None]  # [N, 80, 3]
    strange = np.maximum(distance.min(1) / usual - 1, 0)  # 0: like any reference, 1: twice as far as the farthest
    return Overall(best, np.clip((likely[..., None] * same).sum(1), 0, 1) * np.exp(-strange)[:, None])


def statistics(p: np.ndarray) -> np.ndarray:
    """`[N, F]` float64 statistics of `[N, 64, 64, 3]` pictures in [0, 1]."""
    grey = luma(p)
    return np.concatenate([_colours(p), _gradients(grey), _frequencies(grey), _marks(p, grey)], 1)


@lru_cache(maxsize=1)
def _bank() -> tuple[np.ndarray, np.ndarray, float]:
    """Whitened mean of each look `[80, F]`, the whitening `[F, F]`, and the usual largest squared distance to the own mean."""
    pool = scenes(numbers("train", 900_000, 12 * 8 * _REFERENCES))
    rows = []
    for background, condition, style in LOOKS:
        own = pool[np.flatnonzero(pool.background == background)[:_REFERENCES]]
        zero = np.zeros(len(own), np.int16)
        pictures = render.images(replace(own, condition=zero + condition, style=zero + style)).astype(np.float32) / 255
        for i, sigma_px in enumerate(_SOFT_PX[1:], 1):
            part = pictures[i :: len(_SOFT_PX)]
            pictures[i :: len(_SOFT_PX)] = gaussian_filter(part, (0, sigma_px, sigma_px, 0))
        rows.append(statistics(pictures))
    table = np.stack(rows)  # [80, R, F]
    mean = table.mean(1)
    inner = (table - mean[:, None]).reshape(-1, table.shape[-1])
    spread = inner.std(0)
    values, vectors = np.linalg.eigh(np.cov((inner / spread).T))
    whiten = (vectors / np.sqrt(values + _SHRINK)) / spread[:, None]
    usual = np.quantile(((inner @ whiten) ** 2).sum(1), 0.995)
    return mean @ whiten, whiten, float(usual)


def _quantiles(values: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """`[N, len(at)]` of `[N, M]`, by sorting once."""
    ordered = np.sort(values, axis=1)
    return ordered[:, [round(q * (values.shape[1] - 1)) for q in at]]


def _colours(p: np.ndarray) -> np.ndarray:
    n = len(p)
    found = [_quantiles(p[..., c].reshape(n, -1), (0.1, 0.25, 0.5, 0.75, 0.9)) for c in range(3)]
    bands = p.reshape(n, 4, -1, 3)  # of 16 lines each
    found.append(np.median(bands[:, :, ::3], 2).reshape(n, -1))
    found.append(_quantiles((p.max(-1) - p.min(-1)).reshape(n, -1), (0.1, 0.5, 0.9)))
    return np.concatenate(found, 1)


def _gradients(grey: np.ndarray) -> np.ndarray:
    """Logarithms of quantiles of differences along, down, and along and against the slant of rain."""
    n = len(grey)
    found = []
    for a, b in (
        (grey[:, :, 1:], grey[:, :, :-1]),
        (grey[:, 1:], grey[:, :-1]),
        (grey[:, 3:, 1:], grey[:, :-3, :-1]),
        (grey[:, 3:, :-1], grey[:, :-3, 1:]),
    ):
        step = np.abs(a - b).reshape(n, -1)
        found.append(np.log(_quantiles(step, (0.3, 0.5, 0.7, 0.85, 0.95)) + 0.006))
    return np.concatenate(found, 1)


@lru_cache(maxsize=1)
def _bins() -> tuple[np.ndarray, np.ndarray]:
    """A window against the edges `[64, 64]`, and the frequency bin of each of the 64 x 33 coefficients (one-hot, mean)."""
    axis = np.hanning(SIZE + 2)[1:-1]
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]
    ring = np.digitize(np.hypot(fx, fy), (0.03, 0.08, 0.14, 0.22, 0.36))
    turn = (np.arctan2(fy, fx) / (np.pi / 4) + 0.5) // 1 % 4
    which = np.where((ring > 0) & (ring < 6), (ring - 1) * 4 + turn, 20).astype(int).ravel()
    hot = np.eye(21)[which][:, :20]
    return np.outer(axis, axis), hot / hot.sum(0)


def _frequencies(grey: np.ndarray) -> np.ndarray:
    window, bins = _bins()
    power = np.abs(np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * window)) ** 2
    return np.log(power.reshape(len(grey), -1) @ bins + 1e-2)


def _marks(p: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """What tells single looks: hatching, blocks of four, a paper border, flecks, black rims."""
    n = len(p)
    axis = np.arange(SIZE)
    window, _ = _bins()
    hatch = np.exp(1j * (axis[:, None] - axis[None]) * np.pi / 2.5) * window
    wave = np.einsum("nyx,yx->n", grey - grey.mean((1, 2), keepdims=True), hatch)
    along, down = np.abs(np.diff(grey, axis=2)).mean(1), np.abs(np.diff(grey, axis=1)).mean(2)  # [N, 63]
    seam = axis[:-1] % 4 == 3
    blocks = [np.log((d[:, seam].mean(1) + 0.004) / (d[:, ~seam].mean(1) + 0.004)) for d in (along, down)]
    edge = np.minimum(axis, axis[::-1])
    edge2 = np.minimum(edge[:, None], edge[None])
    borders = [p[:, edge2 == k].mean(1) for k in (0, 2, 5)]
    even = [p[:, edge2 == k].std(1).mean(1, keepdims=True) for k in (0, 2)]
    fleck = grey - np.stack([uniform_filter(g, 7) for g in grey])
    tails = _quantiles(fleck.reshape(n, -1), (0.01, 0.05, 0.95, 0.99))
    dark = np.sqrt((grey < 0.13).mean((1, 2)))[:, None]
    lines = np.stack([wave.real / 40, np.log(np.abs(wave) + 2), *blocks], 1)
    return np.concatenate([lines, *borders, *even, tails, dark], 1)
