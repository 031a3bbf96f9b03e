"""Finding up to three objects: where the picture departs from its background, which guess explains most of it."""

import numpy as np
from scipy.ndimage import maximum_filter

from toyworld.reading import object_hypotheses, object_proposals
from toyworld.reading.scene_classifier import LOOKS
from toyworld.reading.weather_removal import PENCIL, flat, ground_colour, log_ground
from toyworld.scenes import stamps
from toyworld.scenes.palette import CARD, COLOURS, RADII
from toyworld.scenes.scene import SLOTS

_ATTEMPTS = 5
_LEAST_HOPE = 40.0
_LINES_HIDE = 300.0  # odds that lines of a pencil may take from an object
_KEPT = 5
_LEAST_GAIN = 100.0
_LEAST_GAIN_A_PIXEL = 0.5
_TAKEN = 6.0  # log density of pixels that an object explains already: claiming them again costs

Tried = tuple[object_hypotheses.Guesses, np.ndarray]
"""All guesses tried at one object, best first, and their gains."""


def find(picture: np.ndarray, look: int) -> list[Tried]:
    """The objects found in `[64, 64, 3]` (float32 in [0, 1]) under this look."""
    style = int(LOOKS[look, 2])
    how = flat(look)
    p = how.undo(picture[None])[0]
    ground = log_ground(how, p)
    odds = object_proposals.odds(p, look, ground)
    pad = ((object_hypotheses.MARGIN, object_hypotheses.MARGIN), (object_hypotheses.MARGIN, object_hypotheses.MARGIN))
    ground = np.pad(ground, pad, constant_values=3.0)
    canvas = object_hypotheses.Canvas(
        p=np.pad(p, (*pad, (0, 0)), constant_values=-9.0).reshape(-1, 3),
        log_ground=ground.ravel(),
        ground=ground_colour(look),
        sigma=how.sigma.astype(np.float32),
        style=style,
    )
    found: list[Tried] = []
    for _ in range(_ATTEMPTS):
        start, hope = object_proposals.promising(odds, style)
        if hope < _LEAST_HOPE - _LINES_HIDE * (style == PENCIL):
            break
        tried, gain = _refined(canvas, start)
        touched = _mask(int(tried.outline[0]), int(tried.x[0]), int(tried.y[0]))
        around = maximum_filter(touched, 3)[
            object_hypotheses.MARGIN : -object_hypotheses.MARGIN, object_hypotheses.MARGIN : -object_hypotheses.MARGIN
        ]
        if gain[0] < max(_LEAST_GAIN, _LEAST_GAIN_A_PIXEL * area(int(tried.outline[0]))):
            odds[:, around] = np.minimum(odds[:, around], 0)
            continue
        found.append((tried, gain))
        if len(found) == SLOTS:
            break
        canvas.log_ground[touched.ravel()] = _TAKEN
        odds[:, around] = np.minimum(odds[:, around], 0)
        odds[
            :, touched[object_hypotheses.MARGIN : -object_hypotheses.MARGIN, object_hypotheses.MARGIN : -object_hypotheses.MARGIN]
        ] = -3.0
    return found


def _refined(canvas: object_hypotheses.Canvas, start: object_hypotheses.Guesses) -> Tried:
    """Outlines like those given in all textures; then places; then all that the best could be mistaken for."""
    guesses = _textured(_alike(start), canvas.style)
    gain = object_hypotheses.gains(canvas, guesses, every=6)
    for every in (3, 3):
        guesses = _moved(_best_apart(guesses, gain))
        gain = object_hypotheses.gains(canvas, guesses, every)
    guesses = _rivals(_best_apart(guesses, gain), canvas.style)
    guesses = _moved(_best_apart(guesses, object_hypotheses.gains(canvas, guesses, every=2)))
    guesses = _rivals(_best_apart(guesses, object_hypotheses.gains(canvas, guesses, every=2)), canvas.style)
    gain = object_hypotheses.gains(canvas, guesses)
    order = np.argsort(-gain, kind="stable")
    return guesses[order], gain[order]


def _alike(start: object_hypotheses.Guesses) -> object_hypotheses.Guesses:
    """Each at the other radius of its size too, a card with every letter."""
    stamp, radius = start.stamp, start.outline % len(RADII)
    rows = np.repeat(np.arange(len(start)), np.where(stamp == CARD, 8, 1))
    first = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1])
    nth = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
    outline = (stamp[rows] + nth) * len(RADII) + radius[rows]
    both = np.stack([outline, outline ^ 1], 1)
    return object_hypotheses.of(both, start.colour[rows][:, None], np.zeros(1), start.x[rows][:, None], start.y[rows][:, None])


def _textured(start: object_hypotheses.Guesses, style: int) -> object_hypotheses.Guesses:
    """Each in all textures that its outline may have."""
    row, texture = np.nonzero(object_hypotheses.possible(style)[start.outline])
    return object_hypotheses.of(start.outline[row], start.colour[row], texture, start.x[row], start.y[row])


def _moved(start: object_hypotheses.Guesses) -> object_hypotheses.Guesses:
    """Each at nine places."""
    dy, dx = (a.ravel()[None] - 1 for a in np.indices((3, 3)))
    what = start.outline[:, None], start.colour[:, None], start.texture[:, None]
    return object_hypotheses.of(*what, start.x[:, None] + dx, start.y[:, None] + dy)


def _rivals(start: object_hypotheses.Guesses, style: int) -> object_hypotheses.Guesses:
    """Those given, and the first as every other stamp of its size, at every radius, and in all colours and textures."""
    best = start[:1]
    radius = best.outline % len(RADII)
    others = (np.arange(stamps.N_STAMPS) * len(RADII) + radius)[:, None] ^ np.array([0, 1])
    outline = np.concatenate([others.ravel(), best.stamp * len(RADII) + np.arange(len(RADII))])
    texture = np.where(object_hypotheses.possible(style)[outline, best.texture], best.texture, 0)
    shaped = object_hypotheses.of(outline, best.colour, texture, best.x, best.y)[
        object_hypotheses.possible(style)[outline, texture]
    ]
    coloured = _textured(object_hypotheses.of(best.outline, np.arange(len(COLOURS)), np.zeros(1), best.x, best.y), style)
    return object_hypotheses.joined([_textured(start, style), shaped, coloured])


def _best_apart(guesses: object_hypotheses.Guesses, gain: np.ndarray) -> object_hypotheses.Guesses:
    """The best guess of each of the best few outlines."""
    order = np.argsort(-gain, kind="stable")
    _, first = np.unique(guesses.outline[order], return_index=True)
    return guesses[order[np.sort(first)[:_KEPT]]]


def area(outline: int) -> float:
    """Of an outline, px."""
    return float(stamps.atlas().alpha.reshape(object_hypotheses.N_OUTLINES, -1)[outline].sum())


def _mask(outline: int, x: int, y: int) -> np.ndarray:
    """bool [SIDE, SIDE]: the pixels that an outline touches."""
    alpha = stamps.atlas().alpha.reshape(object_hypotheses.N_OUTLINES, stamps.WINDOW, stamps.WINDOW)[outline]
    out = np.zeros((object_hypotheses.SIDE, object_hypotheses.SIDE), bool)
    top, left = y + object_hypotheses.MARGIN - stamps.HALF, x + object_hypotheses.MARGIN - stamps.HALF
    out[top : top + stamps.WINDOW, left : left + stamps.WINDOW] = alpha > 0.05
    return out
