"""Where an object of which colour may stand: odds of every pixel for every colour, gathered under coarse masks."""

from functools import lru_cache

import numpy as np

from toyworld.reading import object_hypotheses
from toyworld.reading.scene_classifier import LOOKS
from toyworld.reading.weather_removal import cells, density, flat
from toyworld.scenes import stamps
from toyworld.scenes.palette import BACKGROUND_RGB, CARD, COLOURS, RADII, RGB, SECOND_RGB, SIZE

_FIRST, _LAST = 8, 56  # centres are looked for between these, px
_N = (_LAST - _FIRST) // 2 + 1
_NEAR_PX = 6
_PAIRS_KEPT = 40
_NOTHING = -3.0  # odds outside of the picture
_MASKS = np.array(  # outlines that stand for all others of their size
    [s * len(RADII) + r for s in range(CARD) for r in (1, 2)]
    + [s * len(RADII) + 2 for s in (CARD, *range(stamps.N_STAMPS - 4, stamps.N_STAMPS))]
)


def odds(p: np.ndarray, look: int, log_ground: np.ndarray) -> np.ndarray:
    """[10, 64, 64] log odds that an object of each colour rather than the background made each pixel of p."""
    return _things(look)[:, cells(p)] - log_ground


def promising(odds: np.ndarray, style: int) -> tuple[object_hypotheses.Guesses, float]:
    """Guesses about the one place where most odds gather: outlines with the colours that suit them, textures yet open;
    and the odds gathered there."""
    margin = stamps.HALF - _FIRST
    wide = np.pad(odds, ((0, 0), (margin, margin + 2), (margin, margin + 2)), constant_values=_NOTHING)
    side = SIZE + 2 * margin + 2
    half = wide.reshape(len(COLOURS), side // 2, 2, side // 2, 2).sum((2, 4))
    windows = np.lib.stride_tricks.sliding_window_view(half, (17, 17), axis=(1, 2))[:, :_N, :_N]
    score = (windows.reshape(-1, 17 * 17) @ _half_masks()).reshape(len(COLOURS), _N * _N, -1)
    score[..., ~object_hypotheses.possible(style)[_MASKS, 0]] = -np.inf
    place = int(score.max((0, 2)).argmax())
    py, px = np.divmod(np.arange(_N * _N), _N)
    reach = _NEAR_PX // 2
    near = np.flatnonzero((np.abs(py - place // _N) <= reach) & (np.abs(px - place % _N) <= reach))
    best = score[:, near].argmax(1)  # [colours, masks]
    value = score[:, near].max(1)
    colour, mask = np.unravel_index(np.argsort(-value, axis=None)[:_PAIRS_KEPT], value.shape)
    at = near[best[colour, mask]]
    return object_hypotheses.of(_MASKS[mask], colour, np.zeros(1), _FIRST + 2 * px[at], _FIRST + 2 * py[at]), float(value.max())


@lru_cache(maxsize=len(LOOKS))
def _things(look: int) -> np.ndarray:
    """[10, bins] float32: log densities of the flat colours of objects, from what stamps are made of."""
    style = int(LOOKS[look, 2])
    one = flat(look)
    table = object_hypotheses.shares(style, 0, 0)
    outline, texture = np.nonzero(object_hypotheses.possible(style))
    some = table.weight[outline, ::7] > 0.9
    share = table.share[outline, texture, ::7][some]  # [M, 3]
    found = []
    for c in range(len(COLOURS)):
        three = np.stack([RGB[c], SECOND_RGB[c], BACKGROUND_RGB[LOOKS[look, 0]]])
        found.append(density(share @ three, one.sigma))
    return np.stack(found)


@lru_cache(maxsize=1)
def _half_masks() -> np.ndarray:
    """[17 * 17, masks] float32: coverage at half size; window rows begin 16 px above the centre."""
    alpha = stamps.atlas().alpha.reshape(object_hypotheses.N_OUTLINES, stamps.WINDOW, stamps.WINDOW)[_MASKS]
    wide = np.pad(alpha, ((0, 0), (0, 1), (0, 1)))
    return np.ascontiguousarray(wide.reshape(len(_MASKS), 17, 2, 17, 2).mean((2, 4)).reshape(len(_MASKS), -1).T)
