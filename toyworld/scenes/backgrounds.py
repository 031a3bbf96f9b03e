"""Backgrounds and weather: periodic tiles, made once, of which each scene shows a different window."""

from functools import lru_cache

import numpy as np

from toyworld.scenes.palette import BACKGROUND_RGB, BACKGROUNDS, SIZE

TILE = 128
"""Period of every tile, px."""


def window(tiles: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The `[N, 64, 64, ...]` windows at `(x, y)` of `tiles[which]`; the tiles are `unrolled`."""
    out = np.empty((len(which), SIZE, SIZE, *tiles.shape[3:]), tiles.dtype)
    for n, (tile, left, top) in enumerate(zip(which.tolist(), x.tolist(), y.tolist(), strict=True)):
        out[n] = tiles[tile, top : top + SIZE, left : left + SIZE]
    return out


def unrolled(tiles: np.ndarray) -> np.ndarray:
    """Periodic tiles `[K, 128, 128, ...]` continued by one window, so that cutting needs no wrapping round."""
    return np.concatenate([tiles, tiles[:, :SIZE]], 1)[:, :, np.r_[0:TILE, 0:SIZE]].astype(np.float32)


@lru_cache(maxsize=1)
def backgrounds() -> np.ndarray:
    """Unrolled `[8, 192, 192, 3]` float32 in [0, 1], one tile per background."""
    makers = (_grass, _sand, _sky, _brick, _snow, _water, _wood, _stone)
    tiles = [BACKGROUND_RGB[i] * (1 + tone[..., None]) + tint for i, (tone, tint) in enumerate(make() for make in makers)]
    assert len(tiles) == len(BACKGROUNDS)
    return unrolled(np.clip(np.stack(tiles), 0, 1))


@lru_cache(maxsize=1)
def streaks() -> np.ndarray:
    """Unrolled `[2, 192, 192]` float32 in [0, 1]: slanting rain, and snowflakes."""
    y, x = _axes()
    rng = np.random.default_rng(20)
    rain, snow = np.zeros((TILE, TILE)), np.zeros((TILE, TILE))
    for cx, cy, length in rng.uniform((0, 0, 9), (TILE, TILE, 16), (74, 3)):
        dx, dy = _wrap(x - cx), _wrap(y - cy)
        along, across = (dx * 0.35 + dy) / 1.06, (dx - 0.35 * dy) / 1.06
        rain = np.maximum(rain, np.clip(1.5 - np.abs(across), 0, 1) * (np.abs(along) < length / 2))
    for cx, cy, r in rng.uniform((0, 0, 1.3), (TILE, TILE, 2.3), (130, 3)):
        snow = np.maximum(snow, np.clip(0.5 + r - np.hypot(_wrap(x - cx), _wrap(y - cy)), 0, 1))
    return unrolled(np.stack([rain, snow]))


@lru_cache(maxsize=1)
def paper() -> np.ndarray:
    """Unrolled `[1, 192, 192]` float32, about zero mean and unit spread: the grain of drawing paper."""
    return unrolled(_noise(31, 1.6)[None])


def _axes() -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(TILE, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _wrap(d: np.ndarray) -> np.ndarray:
    return (d + TILE / 2) % TILE - TILE / 2


def _noise(seed: int, sigma_x: float, sigma_y: float | None = None) -> np.ndarray:
    """Periodic Gaussian-filtered white noise of zero mean and unit spread; sigmas in px."""
    frequency = np.fft.fftfreq(TILE) * 2 * np.pi
    wx = np.exp(-0.5 * (frequency * sigma_x) ** 2)
    wy = np.exp(-0.5 * (frequency * (sigma_x if sigma_y is None else sigma_y)) ** 2)
    white = np.random.default_rng(seed).standard_normal((TILE, TILE))
    smooth = np.fft.ifft2(np.fft.fft2(white) * wx[None, :] * wy[:, None]).real
    return (smooth - smooth.mean()) / smooth.std()


Layer = tuple[np.ndarray, np.ndarray]  # relative tone [128, 128], added tint [128, 128, 3]


def _untinted(tone: np.ndarray) -> Layer:
    return tone, np.zeros((TILE, TILE, 3))


def _grass() -> Layer:
    return _untinted(0.13 * _noise(1, 1.1, 3.2) + 0.05 * _noise(2, 9))


def _sand() -> Layer:
    y, _ = _axes()
    return _untinted(0.055 * np.sin(2 * np.pi * y / 8 + 1.3 * _noise(3, 14, 7)) + 0.03 * _noise(4, 1.2))


def _sky() -> Layer:
    cloud = np.clip(0.75 * (_noise(5, 9, 4.5) - 0.55), 0, 1)
    return np.zeros((TILE, TILE)), cloud[..., None] * np.array([0.42, 0.22, 0.04])


def _brick() -> Layer:
    y, x = _axes()
    row = (y // 8).astype(int)
    along = x + 8 * (row % 2)
    mortar = (y % 8 < 2) | (along % 16 < 2)
    tint = np.random.default_rng(6).normal(0, 0.08, (TILE // 8, TILE // 16))
    tone = tint[row, (along // 16).astype(int) % (TILE // 16)]
    grey = np.where(mortar[..., None], np.array([0.10, 0.34, 0.36]), 0.0)
    return np.where(mortar, 0.0, tone), grey


def _snow() -> Layer:
    drift = _noise(7, 10, 5)
    return np.zeros((TILE, TILE)), -np.clip(drift, 0, 2.5)[..., None] * np.array([0.065, 0.045, 0.015])


def _water() -> Layer:
    y, _ = _axes()
    crest = np.sin(2 * np.pi * y / 10.667 + 1.5 * _noise(8, 7, 9)) + 0.4 * _noise(9, 6, 2)
    return 0.10 * _noise(10, 12, 6), np.clip(crest - 0.55, 0, 1)[..., None] * np.array([0.30, 0.32, 0.26])


def _wood() -> Layer:
    y, _ = _axes()
    plank = (y // 16).astype(int)
    tint = np.random.default_rng(11).normal(0, 0.07, TILE // 16)[plank]
    return _untinted(np.where(y % 16 < 2, -0.5, tint + 0.08 * _noise(12, 12, 1.0)))


def _stone() -> Layer:
    y, x = _axes()
    rng = np.random.default_rng(13)
    near = np.full((2, TILE, TILE), np.inf)
    tone = np.zeros((TILE, TILE))
    for i in range(10):
        for j in range(10):
            cx, cy = (np.array([j, i]) + 0.5 + rng.uniform(-0.28, 0.28, 2)) * TILE / 10
            shade = rng.normal(0, 0.13)
            d = np.hypot(_wrap(x - cx), _wrap(y - cy))
            closer = d < near[0]
            near[1] = np.where(closer, near[0], np.minimum(near[1], d))
            near[0] = np.where(closer, d, near[0])
            tone = np.where(closer, shade, tone)
    gap = np.clip(1.4 - 0.6 * (near[1] - near[0]), 0, 1)
    return _untinted(tone * (1 - gap) - 0.45 * gap)
