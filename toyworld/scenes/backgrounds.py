"""Background and precipitation textures: periodic tiles, built once per process. A scene shows a window of a tile."""

from functools import lru_cache

import numpy as np

from toyworld.scenes.palette import BACKGROUND_RGB, BACKGROUNDS, SIZE

TILE_PX = 128
"""Period of every tile, px."""


def cut_windows(tiles: np.ndarray, tile_rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cut `[N, 64, 64, ...]`: for each n the window of `tiles[tile_rows[n]]` whose upper left corner is `(x[n], y[n])`.

    The tiles come from `pad_periodic`.
    """
    out = np.empty((len(tile_rows), SIZE, SIZE, *tiles.shape[3:]), tiles.dtype)
    for n, (row, left, top) in enumerate(zip(tile_rows.tolist(), x.tolist(), y.tolist(), strict=True)):
        out[n] = tiles[row, top : top + SIZE, left : left + SIZE]
    return out


def pad_periodic(tiles: np.ndarray) -> np.ndarray:
    """Extend periodic tiles `[K, 128, 128, ...]` by 64 px down and right, so that no window needs wrapping."""
    return np.concatenate([tiles, tiles[:, :SIZE]], 1)[:, :, np.r_[0:TILE_PX, 0:SIZE]].astype(np.float32)


@lru_cache(maxsize=1)
def background_tiles() -> np.ndarray:
    """Padded tiles `[8, 192, 192, 3]`, float32 in [0, 1], one per background."""
    tile_functions = (_grass, _sand, _sky, _brick, _snow, _water, _wood, _stone)
    tiles = [BACKGROUND_RGB[i] * (1 + tone[..., None]) + tint for i, (tone, tint) in enumerate(f() for f in tile_functions)]
    assert len(tiles) == len(BACKGROUNDS)
    return pad_periodic(np.clip(np.stack(tiles), 0, 1))


@lru_cache(maxsize=1)
def precipitation_tiles() -> np.ndarray:
    """Padded tiles `[2, 192, 192]`, float32 coverage in [0, 1]: slanting rain, and snowflakes."""
    y, x = _axes()
    rng = np.random.default_rng(20)
    rain, snow = np.zeros((TILE_PX, TILE_PX)), np.zeros((TILE_PX, TILE_PX))
    for cx, cy, length in rng.uniform((0, 0, 9), (TILE_PX, TILE_PX, 16), (74, 3)):
        dx, dy = _wrap(x - cx), _wrap(y - cy)
        along, across = (dx * 0.35 + dy) / 1.06, (dx - 0.35 * dy) / 1.06
        rain = np.maximum(rain, np.clip(1.5 - np.abs(across), 0, 1) * (np.abs(along) < length / 2))
    for cx, cy, r in rng.uniform((0, 0, 1.3), (TILE_PX, TILE_PX, 2.3), (130, 3)):
        snow = np.maximum(snow, np.clip(0.5 + r - np.hypot(_wrap(x - cx), _wrap(y - cy)), 0, 1))
    return pad_periodic(np.stack([rain, snow]))


@lru_cache(maxsize=1)
def paper_tile() -> np.ndarray:
    """Padded tile `[1, 192, 192]`, float32: the grain of drawing paper, about zero mean and unit standard deviation."""
    return pad_periodic(_noise(31, 1.6)[None])


def _axes() -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates y and x of a tile, `[128, 128]` each, px."""
    axis = np.arange(TILE_PX, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _wrap(d: np.ndarray) -> np.ndarray:
    """Shortest signed differences on the periodic tile: `d` wrapped to [-64, 64) px."""
    return (d + TILE_PX / 2) % TILE_PX - TILE_PX / 2


def _noise(seed: int, sigma_x: float, sigma_y: float | None = None) -> np.ndarray:
    """Periodic Gaussian-filtered white noise of zero mean and unit standard deviation; sigmas in px."""
    frequency = np.fft.fftfreq(TILE_PX) * 2 * np.pi
    wx = np.exp(-0.5 * (frequency * sigma_x) ** 2)
    wy = np.exp(-0.5 * (frequency * (sigma_x if sigma_y is None else sigma_y)) ** 2)
    white = np.random.default_rng(seed).standard_normal((TILE_PX, TILE_PX))
    smooth = np.fft.ifft2(np.fft.fft2(white) * wx[None, :] * wy[:, None]).real
    return (smooth - smooth.mean()) / smooth.std()


ToneAndTint = tuple[np.ndarray, np.ndarray]
"""Relative tone `[128, 128]` and added tint `[128, 128, 3]`: colour = base colour * (1 + tone) + tint."""


def _untinted(tone: np.ndarray) -> ToneAndTint:
    """The tone with a tint of zero."""
    return tone, np.zeros((TILE_PX, TILE_PX, 3))


def _grass() -> ToneAndTint:
    return _untinted(0.13 * _noise(1, 1.1, 3.2) + 0.05 * _noise(2, 9))


def _sand() -> ToneAndTint:
    y, _ = _axes()
    return _untinted(0.055 * np.sin(2 * np.pi * y / 8 + 1.3 * _noise(3, 14, 7)) + 0.03 * _noise(4, 1.2))


def _sky() -> ToneAndTint:
    cloud = np.clip(0.75 * (_noise(5, 9, 4.5) - 0.55), 0, 1)
    return np.zeros((TILE_PX, TILE_PX)), cloud[..., None] * np.array([0.42, 0.22, 0.04])


def _brick() -> ToneAndTint:
    y, x = _axes()
    row = (y // 8).astype(int)
    along = x + 8 * (row % 2)
    mortar = (y % 8 < 2) | (along % 16 < 2)
    tint = np.random.default_rng(6).normal(0, 0.08, (TILE_PX // 8, TILE_PX // 16))
    tone = tint[row, (along // 16).astype(int) % (TILE_PX // 16)]
    grey = np.where(mortar[..., None], np.array([0.10, 0.34, 0.36]), 0.0)
    return np.where(mortar, 0.0, tone), grey


def _snow() -> ToneAndTint:
    drift = _noise(7, 10, 5)
    return np.zeros((TILE_PX, TILE_PX)), -np.clip(drift, 0, 2.5)[..., None] * np.array([0.065, 0.045, 0.015])


def _water() -> ToneAndTint:
    y, _ = _axes()
    crest = np.sin(2 * np.pi * y / 10.667 + 1.5 * _noise(8, 7, 9)) + 0.4 * _noise(9, 6, 2)
    return 0.10 * _noise(10, 12, 6), np.clip(crest - 0.55, 0, 1)[..., None] * np.array([0.30, 0.32, 0.26])


def _wood() -> ToneAndTint:
    y, _ = _axes()
    plank = (y // 16).astype(int)
    tint = np.random.default_rng(11).normal(0, 0.07, TILE_PX // 16)[plank]
    return _untinted(np.where(y % 16 < 2, -0.5, tint + 0.08 * _noise(12, 12, 1.0)))


def _stone() -> ToneAndTint:
    """A Voronoi pattern of 10 x 10 jittered centres: one tone per stone, dark gaps between stones."""
    y, x = _axes()
    rng = np.random.default_rng(13)
    distances = np.full((2, TILE_PX, TILE_PX), np.inf)  # to the nearest and to the second nearest centre, px
    tone = np.zeros((TILE_PX, TILE_PX))
    for i in range(10):
        for j in range(10):
            cx, cy = (np.array([j, i]) + 0.5 + rng.uniform(-0.28, 0.28, 2)) * TILE_PX / 10
            shade = rng.normal(0, 0.13)
            distance = np.hypot(_wrap(x - cx), _wrap(y - cy))
            closer = distance < distances[0]
            distances[1] = np.where(closer, distances[0], np.minimum(distances[1], distance))
            distances[0] = np.where(closer, distance, distances[0])
            tone = np.where(closer, shade, tone)
    gap = np.clip(1.4 - 0.6 * (distances[1] - distances[0]), 0, 1)
    return _untinted(tone * (1 - gap) - 0.45 * gap)
