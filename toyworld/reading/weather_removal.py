"""Undoing a look: every weather and style is, but for streaks and lines, an affine map of colour at each pixel.

Legend: p is a flat picture, as painted before weather and style; I is what is seen; I = A p + b at each pixel.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

from toyworld.reading.scene_classifier import LOOKS
from toyworld.scenes import render
from toyworld.scenes.palette import BACKGROUND_RGB, SIZE, STYLES, luma
from toyworld.scenes.scene import EMPTY, Scenes, numbers, scenes
from toyworld.scenes.weather_style import weather_and_style

PENCIL = STYLES.index("pencil sketch")
SIGMA = 0.05
"""How far a colour that is seen may lie from the colour that is meant, as a standard deviation in [0, 1] before undoing."""
OUTLIERS = 0.04
"""Share of pixels that may have any colour."""
_LOW, _STEP, _BINS = -0.25, 0.05, 32  # the grid upon which densities of flat colours are kept
_MEAN_TINT = 0.47  # of pencils
_HATCH_PX = 4.0
_SOFT_PX = 0.7  # half of the references are blurred by this, as a decoder may do
_BORDER_PX = 8  # papers of watercolours are white this far in


@dataclass(frozen=True)
class Flat:
    """How one look is undone, and the colours it then leaves."""

    inverse: np.ndarray  # [64, 64, 3, 3] float32, A^-1
    offset: np.ndarray  # [64, 64, 3] float32, b
    sigma: np.ndarray  # [3], SIGMA after undoing
    log_ground: np.ndarray  # [2, 32^3] float32, log density of background colours: inside, near the border

    hatched: bool

    def undo(self, pictures: np.ndarray) -> np.ndarray:
        """p of I, `[N, 64, 64, 3]`."""
        return _undone(self.inverse, self.offset, pictures, self.hatched)


def log_ground(flat: Flat, p: np.ndarray) -> np.ndarray:
    """Log density `[64, 64]` of each colour of the flat picture p, as background."""
    edge = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    zone = (np.minimum(edge[:, None], edge[None]) < _BORDER_PX).astype(int)
    return flat.log_ground[zone, cells(p)]


@lru_cache(maxsize=len(LOOKS))
def flat(look: int) -> Flat:
    """Made of renders at first use (about 0.1 s a look)."""
    background, condition, style = LOOKS[look]
    pool = scenes(numbers("train", 900_000, 800))
    own = pool[np.flatnonzero(pool.background == background)[:48]]
    zero = np.zeros(len(own), np.int16)
    own = replace(own, condition=zero + condition, style=zero + style)
    matrix, offset = _affine(own)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    sigma = SIGMA * np.sqrt((inverse**2).sum(-1).mean((0, 1)))
    bare = replace(
        own[:16], kind=np.full((16, own.kind.shape[1]), EMPTY, np.int16), tile_x=own.tile_y[:16], tile_y=own.tile_x[:16]
    )
    hatched = bool(style == PENCIL)
    truth = render.truth(own)
    empty, p = (_undone(inverse, offset, _some_soft(seen), hatched) for seen in (render.images(bare), truth.images))
    ground = ~maximum_filter(truth.owner >= 0, (1, 5, 5))
    border = np.ones((SIZE, SIZE), bool)
    border[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = False
    grounds = []
    for zone in (~border, border):
        grounds.append(density(np.concatenate([empty[:, zone].reshape(-1, 3), p[ground & zone]]), sigma))
    return Flat(inverse, offset.astype(np.float32), sigma, np.stack(grounds), hatched)


def _affine(own: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """A `[64, 64, 3, 3]` and b `[64, 64, 3]`, from pictures of one colour; the median over scenes drops streaks."""
    some = own[:15]
    full = np.ones((len(some), SIZE, SIZE), np.float32)
    seen = []
    for colour in np.vstack([np.zeros((1, 3)), np.eye(3)]).astype(np.float32):
        pictures = np.broadcast_to(colour, (*full.shape, 3)).copy()
        seen.append(np.median(weather_and_style(some, pictures, full), 0))
    if some.style[0] == STYLES.index("watercolour"):  # the same everywhere but for the paper's border
        seen = [np.broadcast_to(np.median(s, (0, 1)), s.shape) for s in seen]
    offset = seen[0]
    return np.stack([s - offset for s in seen[1:]], -1), offset


def _undone(inverse: np.ndarray, offset: np.ndarray, pictures: np.ndarray, hatched: bool) -> np.ndarray:
    p = np.einsum("yxij,nyxj->nyxi", inverse, pictures - offset)
    if not hatched:
        return p
    # a decoder may lose the hatching here and there: what is left of it says how much of it to undo
    paler = 1 - luma(pictures) / 0.98
    inverse_tint = inverse[..., 0, 0] * 0.98  # 1 / (0.30 + 0.34 hatch)
    wave = 1 / inverse_tint - _MEAN_TINT
    near = (0, _HATCH_PX, _HATCH_PX)
    left = gaussian_filter(paler * wave, near) / (gaussian_filter(paler * wave**2, near) / _MEAN_TINT + 1e-4)
    tint = _MEAN_TINT + np.clip(left, 0, 1) * wave
    return 1 - (1 - pictures / 0.98) / tint[..., None]


def _some_soft(pictures: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1], every other one blurred."""
    out = pictures.astype(np.float32) / 255
    out[::2] = gaussian_filter(out[::2], (0, _SOFT_PX, _SOFT_PX, 0))
    return out


def cells(p: np.ndarray) -> np.ndarray:
    """Where colours `[..., 3]` lie in a table of densities."""
    at = np.clip((p - _LOW) / _STEP, 0, _BINS - 1).astype(np.int64)
    return (at[..., 0] * _BINS + at[..., 1]) * _BINS + at[..., 2]


def density(colours: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Log density per unit volume of colours `[M, 3]`, smoothed by sigma, with room for outliers; `[32^3]`."""
    count = np.bincount(cells(colours), minlength=_BINS**3).reshape(_BINS, _BINS, _BINS)
    smooth = gaussian_filter(count.astype(np.float32), sigma / _STEP, mode="nearest") / (len(colours) * _STEP**3)
    return np.log((1 - OUTLIERS) * smooth + OUTLIERS).ravel()


def ground_colour(look: int) -> np.ndarray:
    """[3] the flat colour of the background."""
    return BACKGROUND_RGB[LOOKS[look, 0]]
