"""Propose objects by a coarse search: per-pixel log likelihood ratios of every colour, summed under coarse masks."""

from functools import lru_cache

import numpy as np

from toyworld.reading.object_hypotheses import N_OUTLINES, Hypotheses, allowed_textures, broadcast_hypotheses, mix_table
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.reading.weather_removal import bin_indices, fit_inverse, log_density
from toyworld.scenes import stamps
from toyworld.scenes.palette import BACKGROUND_RGB, CARD, COLOURS, RADII, RGB, SECOND_RGB, SIZE

_FIRST, _LAST = 8, 56  # range of the centres, px; the step is 2 px
_N_CENTRES = (_LAST - _FIRST) // 2 + 1  # per axis
_NEIGHBOURHOOD_PX = 6
_N_PROPOSALS = 40
_OUTSIDE = -3.0  # log likelihood ratio of positions outside of the image
_MASKS = np.array(  # outlines that represent all others of their size
    [s * len(RADII) + r for s in range(CARD) for r in (1, 2)]
    + [s * len(RADII) + 2 for s in (CARD, *range(stamps.N_STAMPS - 4, stamps.N_STAMPS))]
)


def colour_log_ratios(clean: np.ndarray, scene_class: int, log_background: np.ndarray) -> np.ndarray:
    """[10, 64, 64] log likelihood ratio of an object of each colour against the background at each pixel."""
    return _log_object_density(scene_class)[:, bin_indices(clean)] - log_background


def propose(log_ratios: np.ndarray, style: int) -> tuple[Hypotheses, float]:
    """The best outlines and colours around the centre with the largest sum of log likelihood ratios, and this sum.

    `log_ratios` is `[10, 64, 64]`, see `colour_log_ratios`. All proposals have texture 0 (plain).
    """
    margin = stamps.HALF - _FIRST
    padded = np.pad(log_ratios, ((0, 0), (margin, margin + 2), (margin, margin + 2)), constant_values=_OUTSIDE)
    side = SIZE + 2 * margin + 2
    half_size = padded.reshape(len(COLOURS), side // 2, 2, side // 2, 2).sum((2, 4))
    windows = np.lib.stride_tricks.sliding_window_view(half_size, (17, 17), axis=(1, 2))[:, :_N_CENTRES, :_N_CENTRES]
    score = (windows.reshape(-1, 17 * 17) @ _half_size_masks()).reshape(len(COLOURS), _N_CENTRES * _N_CENTRES, -1)
    score[..., ~allowed_textures(style)[_MASKS, 0]] = -np.inf
    best_centre = int(score.max((0, 2)).argmax())
    row, column = np.divmod(np.arange(_N_CENTRES * _N_CENTRES), _N_CENTRES)
    reach = _NEIGHBOURHOOD_PX // 2
    in_reach = (np.abs(row - best_centre // _N_CENTRES) <= reach) & (np.abs(column - best_centre % _N_CENTRES) <= reach)
    near = np.flatnonzero(in_reach)
    best_near = score[:, near].argmax(1)  # [colours, masks]
    best_score = score[:, near].max(1)
    colour, mask = np.unravel_index(np.argsort(-best_score, axis=None)[:_N_PROPOSALS], best_score.shape)
    centre = near[best_near[colour, mask]]
    x, y = _FIRST + 2 * column[centre], _FIRST + 2 * row[centre]
    return broadcast_hypotheses(_MASKS[mask], colour, np.zeros(1), x, y), float(best_score.max())


@lru_cache(maxsize=len(SCENE_CLASSES))
def _log_object_density(scene_class: int) -> np.ndarray:
    """[10, bins] float32: log density of clean pixel colours for objects of each colour, over outlines and textures."""
    style = int(SCENE_CLASSES[scene_class, 2])
    sigma = fit_inverse(scene_class).sigma
    table = mix_table(style, 0, 0)
    outline, texture = np.nonzero(allowed_textures(style))
    is_object = table.weight[outline, ::7] > 0.9  # every seventh pixel is enough
    mix = table.mix[outline, texture, ::7][is_object]  # [M, 3]
    densities = []
    for c in range(len(COLOURS)):
        colours = np.stack([RGB[c], SECOND_RGB[c], BACKGROUND_RGB[SCENE_CLASSES[scene_class, 0]]])
        densities.append(log_density(mix @ colours, sigma))
    return np.stack(densities)


@lru_cache(maxsize=1)
def _half_size_masks() -> np.ndarray:
    """[17 * 17, masks] float32: coverage at half resolution. Windows begin 16 px above and left of the centre."""
    alpha = stamps.atlas().alpha.reshape(N_OUTLINES, stamps.WINDOW, stamps.WINDOW)[_MASKS]
    padded = np.pad(alpha, ((0, 0), (0, 1), (0, 1)))
    return np.ascontiguousarray(padded.reshape(len(_MASKS), 17, 2, 17, 2).mean((2, 4)).reshape(len(_MASKS), -1).T)
