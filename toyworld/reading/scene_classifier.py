"""Classify background, condition and style of a whole picture by the nearest class mean of rendered references.

A picture becomes a vector of statistics (quantiles of colour and of gradients, spectral energies) that objects change
little. Rendered references give the mean of every class and the covariance within classes, pooled over all classes.
The distance is Mahalanobis's (1936), so that no parameters are fitted except means and one covariance. The choice of
statistics is ours.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from toyworld.scenes import render
from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, SIZE, STYLES, luma
from toyworld.scenes.scene import generate_scenes, scene_numbers

SCENE_CLASSES = np.array(
    [(b, c, 0) for b in range(len(BACKGROUNDS)) for c in range(len(CONDITIONS))]
    + [(b, 0, s) for b in range(len(BACKGROUNDS)) for s in range(1, len(STYLES))],
    np.int16,
)
"""[80, 3] every (background, condition, style) that occurs: only photos have weather."""

_REFERENCES = 40  # rendered pictures per class
_BLUR_PX = (0.0, 0.5, 0.8, 1.1)  # sigmas by which the references are blurred in turn, as a decoder may blur pictures
_SHRINKAGE = 0.02  # added to the eigenvalues of the correlation matrix
_TEMPERATURE = 6.0  # divides squared distances: the statistics are not Gaussian, so that the posterior is too sharp


@dataclass(frozen=True)
class SceneClassification:
    """Classes of N pictures."""

    scene_class: np.ndarray  # [N] row of SCENE_CLASSES
    confidence: np.ndarray  # [N, 3] in [0, 1], in background, condition, style


def classify_scenes(pictures: np.ndarray) -> SceneClassification:
    """The nearest class of each of the pictures `[N, 64, 64, 3]`, float32 in [0, 1].

    The confidence is the posterior probability, summed over the classes that share the value, times a factor that falls
    exponentially once a picture lies farther from its class than the references do.
    """
    mean, whitening, typical_max = _reference_statistics()
    rows = image_statistics(pictures) @ whitening
    distance = ((rows[:, None] - mean[None]) ** 2).sum(-1)  # [N, 80]
    nearest = distance.argmin(1)
    posterior = np.exp(-0.5 * (distance - distance.min(1, keepdims=True)) / _TEMPERATURE)
    posterior /= posterior.sum(1, keepdims=True)
    same_value = SCENE_CLASSES[nearest][:, None] == SCENE_CLASSES[None]  # [N, 80, 3]
    excess = np.maximum(distance.min(1) / typical_max - 1, 0)  # 0: within the range of the references
    confidence = np.clip((posterior[..., None] * same_value).sum(1), 0, 1) * np.exp(-excess)[:, None]
    return SceneClassification(nearest, confidence)


def image_statistics(pictures: np.ndarray) -> np.ndarray:
    """The vectors of statistics `[N, F]`, float64, of pictures `[N, 64, 64, 3]` in [0, 1]."""
    grey = luma(pictures)
    return np.concatenate(
        [_colour_statistics(pictures), _gradient_statistics(grey), _spectral_energies(grey), _style_statistics(pictures, grey)], 1
    )


@lru_cache(maxsize=1)
def _reference_statistics() -> tuple[np.ndarray, np.ndarray, float]:
    """Whitened class means `[80, F]`, whitening matrix `[F, F]`, 0.995 quantile of squared distances in classes."""
    pool = generate_scenes(scene_numbers("train", 900_000, 12 * 8 * _REFERENCES))
    rows = []
    for background, condition, style in SCENE_CLASSES:
        references = pool[np.flatnonzero(pool.background == background)[:_REFERENCES]]
        zero = np.zeros(len(references), np.int16)
        references = replace(references, condition=zero + condition, style=zero + style)
        pictures = render.images(references).astype(np.float32) / 255
        for i, sigma_px in enumerate(_BLUR_PX[1:], 1):
            part = pictures[i :: len(_BLUR_PX)]
            pictures[i :: len(_BLUR_PX)] = gaussian_filter(part, (0, sigma_px, sigma_px, 0))
        rows.append(image_statistics(pictures))
    table = np.stack(rows)  # [80, R, F]
    mean = table.mean(1)
    residuals = (table - mean[:, None]).reshape(-1, table.shape[-1])
    std = residuals.std(0)
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov((residuals / std).T))
    whitening = (eigenvectors / np.sqrt(eigenvalues + _SHRINKAGE)) / std[:, None]
    typical_max = np.quantile(((residuals @ whitening) ** 2).sum(1), 0.995)
    return mean @ whitening, whitening, float(typical_max)


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles `[N, len(levels)]` of the rows of `[N, M]`, without interpolation, by one sort."""
    ordered = np.sort(values, axis=1)
    return ordered[:, [round(q * (values.shape[1] - 1)) for q in levels]]


def _colour_statistics(pictures: np.ndarray) -> np.ndarray:
    """Quantiles of each channel, channel medians of four horizontal bands, quantiles of chroma (max - min)."""
    n = len(pictures)
    columns = [_quantiles(pictures[..., c].reshape(n, -1), (0.1, 0.25, 0.5, 0.75, 0.9)) for c in range(3)]
    bands = pictures.reshape(n, 4, -1, 3)  # of 16 lines each
    columns.append(np.median(bands[:, :, ::3], 2).reshape(n, -1))
    columns.append(_quantiles((pictures.max(-1) - pictures.min(-1)).reshape(n, -1), (0.1, 0.5, 0.9)))
    return np.concatenate(columns, 1)


def _gradient_statistics(grey: np.ndarray) -> np.ndarray:
    """Log quantiles of absolute differences: horizontal, vertical, and along both diagonals (3 px down, 1 px across).

    One of the diagonals is about the direction of rain.
    """
    n = len(grey)
    columns = []
    for a, b in (
        (grey[:, :, 1:], grey[:, :, :-1]),
        (grey[:, 1:], grey[:, :-1]),
        (grey[:, 3:, 1:], grey[:, :-3, :-1]),
        (grey[:, 3:, :-1], grey[:, :-3, 1:]),
    ):
        difference = np.abs(a - b).reshape(n, -1)
        columns.append(np.log(_quantiles(difference, (0.3, 0.5, 0.7, 0.85, 0.95)) + 0.006))
    return np.concatenate(columns, 1)


@lru_cache(maxsize=1)
def _spectral_bins() -> tuple[np.ndarray, np.ndarray]:
    """A Hann window `[64, 64]`, and averaging weights over 5 rings x 4 directions of frequency `[64 * 33, 20]`."""
    hann = np.hanning(SIZE + 2)[1:-1]
    fy, fx = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]
    ring = np.digitize(np.hypot(fx, fy), (0.03, 0.08, 0.14, 0.22, 0.36))
    direction = (np.arctan2(fy, fx) / (np.pi / 4) + 0.5) // 1 % 4
    bin_index = np.where((ring > 0) & (ring < 6), (ring - 1) * 4 + direction, 20).astype(int).ravel()
    one_hot = np.eye(21)[bin_index][:, :20]
    return np.outer(hann, hann), one_hot / one_hot.sum(0)


def _spectral_energies(grey: np.ndarray) -> np.ndarray:
    """Logarithms of the mean power in every bin of frequency, `[N, 20]`."""
    window, bins = _spectral_bins()
    power = np.abs(np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * window)) ** 2
    return np.log(power.reshape(len(grey), -1) @ bins + 1e-2)


def _style_statistics(pictures: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Features of single styles and conditions: hatching, blocks of pixel art, paper border, flakes, black rims."""
    n = len(pictures)
    axis = np.arange(SIZE)
    window, _ = _spectral_bins()
    hatching = np.exp(1j * (axis[:, None] - axis[None]) * np.pi / 2.5) * window
    amplitude = np.einsum("nyx,yx->n", grey - grey.mean((1, 2), keepdims=True), hatching)
    column_steps, row_steps = np.abs(np.diff(grey, axis=2)).mean(1), np.abs(np.diff(grey, axis=1)).mean(2)  # [N, 63]
    seam = axis[:-1] % 4 == 3
    seams = [np.log((d[:, seam].mean(1) + 0.004) / (d[:, ~seam].mean(1) + 0.004)) for d in (column_steps, row_steps)]
    edge_distance = np.minimum(axis, axis[::-1])
    border_distance = np.minimum(edge_distance[:, None], edge_distance[None])  # px to the nearest border, [64, 64]
    border_colours = [pictures[:, border_distance == k].mean(1) for k in (0, 2, 5)]
    border_stds = [pictures[:, border_distance == k].std(1).mean(1, keepdims=True) for k in (0, 2)]
    local_contrast = grey - np.stack([uniform_filter(g, 7) for g in grey])
    contrast_tails = _quantiles(local_contrast.reshape(n, -1), (0.01, 0.05, 0.95, 0.99))
    black_share = np.sqrt((grey < 0.13).mean((1, 2)))[:, None]
    periodic = np.stack([amplitude.real / 40, np.log(np.abs(amplitude) + 2), *seams], 1)
    return np.concatenate([periodic, *border_colours, *border_stds, contrast_tails, black_share], 1)
