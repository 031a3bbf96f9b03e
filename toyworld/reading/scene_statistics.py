"""Image statistics that barely depend on objects: quantiles of colour and of gradients, spectral energies.

The choice of statistics is ours. The classifier of scenes compares them with those of rendered references.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import uniform_filter

from toyworld.scenes.palette import SIZE, luma


def image_statistics(pictures: np.ndarray) -> np.ndarray:
    """The vectors of statistics `[N, F]`, float64, of images `[N, 64, 64, 3]` in [0, 1]."""
    grey = luma(pictures)
    return np.concatenate(
        [_colour_statistics(pictures), _gradient_statistics(grey), _spectral_energies(grey), _style_statistics(pictures, grey)], 1
    )


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
