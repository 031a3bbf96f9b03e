"""Guesses at one object, and how well each explains the pixels it claims.

A guess says which stamp, radius, colour, texture and place. The colour it expects at a pixel is linear in three
colours, the object's two and the background's, with shares known from the stamp: that makes hundreds of guesses cheap.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from toyworld.reading.weather_removal import OUTLIERS
from toyworld.scenes import stamps
from toyworld.scenes.palette import BIG_RADIUS, CARD, RADII, RGB, SECOND_RGB, SHAPES, SIZE, STYLES, TEXTURES, luma

MARGIN = stamps.HALF + 3
"""Pictures are padded by this much, px, so that every window of a guess lies within."""
SIDE = SIZE + 2 * MARGIN
N_OUTLINES = stamps.N_STAMPS * len(RADII)
_PIXELS = 600  # the largest object has 580
_SOFT_PX = 0.5  # expected pictures are a little soft: between a render and what a decoder makes of it
_BLOCK = 4  # of pixel art
_PENCIL, _PIXEL_ART, _CARTOON, _WATERCOLOUR = (STYLES.index(s) for s in STYLES[1:])
_MOST_GROUND = 0.35  # pixels with more of the background in them are left out: edges may wobble


@dataclass(frozen=True)
class Guesses:
    """H guesses, int64 `[H]` each. An outline is a stamp at a radius: `stamp * len(RADII) + row of RADII`."""

    outline: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    x: np.ndarray  # px
    y: np.ndarray  # px

    def __len__(self) -> int:
        return len(self.outline)

    def __getitem__(self, rows: np.ndarray | slice) -> "Guesses":
        return Guesses(self.outline[rows], self.colour[rows], self.texture[rows], self.x[rows], self.y[rows])

    @property
    def kind(self) -> np.ndarray:
        """[H] index into KINDS."""
        return np.minimum(self.stamp, CARD) + (self.stamp >= CARD + 8)

    @property
    def stamp(self) -> np.ndarray:
        """[H] row of the atlas."""
        return self.outline // len(RADII)

    @property
    def variant(self) -> np.ndarray:
        """[H] letter or pose, 0 for shapes."""
        return np.where(self.stamp < CARD, 0, (self.stamp - CARD) % 8)

    @property
    def radius(self) -> np.ndarray:
        """[H] px."""
        return np.array(RADII)[self.outline % len(RADII)]

    @property
    def big(self) -> np.ndarray:
        """[H] bool."""
        return self.radius >= BIG_RADIUS


def of(outline: np.ndarray, colour: np.ndarray, texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> Guesses:
    """Guesses from anything that broadcasts together."""
    return Guesses(*(a.ravel().astype(np.int64) for a in np.broadcast_arrays(outline, colour, texture, x, y)))


def joined(parts: list[Guesses]) -> Guesses:
    """One after the other."""
    return Guesses(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("outline", "colour", "texture", "x", "y")))


@lru_cache(maxsize=len(STYLES))
def possible(style: int) -> np.ndarray:
    """bool [outlines, textures]: only big shapes are textured; letters and people are big; all of pixel art is, and plain."""
    stamp, radius = np.divmod(np.arange(N_OUTLINES), len(RADII))
    big = np.array(RADII)[radius] >= BIG_RADIUS
    shape = stamp < len(SHAPES)
    found = np.zeros((N_OUTLINES, len(TEXTURES)), bool)
    found[:, 0] = big | (shape & (style != _PIXEL_ART))
    found[:, 1:] = (big & shape & (style != _PIXEL_ART))[:, None]
    return found


@dataclass(frozen=True)
class Shares:
    """What each pixel of an outline is made of. K pixels, the rest of weight 0."""

    offset: np.ndarray  # [outlines, K] int64, from the centre in a padded picture, flattened
    weight: np.ndarray  # [outlines, K] float32 in [0, 1]
    share: np.ndarray  # [outlines, textures, K, 3] float32, of first colour, second colour, background
    slopes: np.ndarray | None  # [2, outlines, textures, K, 3], for pencils: their differences down and along


@lru_cache(maxsize=40)
def shares(style: int, phase_y: int, phase_x: int) -> Shares:
    """The table of a style; the phases (0..3, place modulo the block) matter to pixel art alone."""
    atlas, patterns = stamps.atlas(), stamps.patterns()
    ink, alpha = atlas.ink[:, :, None], atlas.alpha[:, :, None]
    second = np.maximum(patterns[None, None], ink)  # [stamp, radius, texture, W, W]
    shade = (atlas.flat if style == _CARTOON else atlas.shade)[:, :, None]
    parts = np.stack([alpha * shade * (1 - second), alpha * shade * second, np.broadcast_to(1 - alpha, second.shape)], -1)
    parts = parts.reshape(N_OUTLINES, len(TEXTURES), stamps.WINDOW, stamps.WINDOW, 3)
    if style == _WATERCOLOUR:
        for _ in range(2):
            parts = (parts + sum(np.roll(parts, s, a) for a in (2, 3) for s in (1, -1))) / 5
    else:
        parts = gaussian_filter(parts, (0, 0, _SOFT_PX, _SOFT_PX, 0), mode="nearest")
    if style == _PIXEL_ART:
        parts = _blocks(parts, phase_y, phase_x)
    slopes = np.array(np.gradient(parts, axis=(2, 3))) if style == _PENCIL else None
    ground = parts[:, 0, ..., 2].reshape(N_OUTLINES, -1)
    order = np.argsort(ground, axis=1, kind="stable")[:, :_PIXELS]
    rows = np.arange(N_OUTLINES)[:, None]
    dy, dx = np.divmod(order, stamps.WINDOW)
    inside = ground[rows, order]

    def picked(a: np.ndarray) -> np.ndarray:
        a = a.reshape(N_OUTLINES, len(TEXTURES), -1, 3)
        return np.take_along_axis(a, order[:, None, :, None], 2).astype(np.float32)

    return Shares(
        offset=(dy - stamps.HALF) * SIDE + dx - stamps.HALF,
        weight=np.where(inside < _MOST_GROUND, 1 - inside, 0).astype(np.float32),
        share=picked(parts),
        slopes=None if slopes is None else np.stack([picked(s) for s in slopes]),
    )


def _blocks(parts: np.ndarray, phase_y: int, phase_x: int) -> np.ndarray:
    """Means over blocks of 4 px, whose seams lie where they do when the centre is at `phase` modulo 4."""
    before_y, before_x = ((p - stamps.HALF) % _BLOCK for p in (phase_y, phase_x))
    side = stamps.WINDOW + 2 * _BLOCK - 1
    side -= side % _BLOCK
    pad = [(0, 0), (0, 0), *((b, side - stamps.WINDOW - b) for b in (before_y, before_x)), (0, 0)]
    wide = np.pad(parts, pad)
    wide[..., 2] = np.pad(parts[..., 2], pad[:-1], constant_values=1)
    n = side // _BLOCK
    small = wide.reshape(*parts.shape[:2], n, _BLOCK, n, _BLOCK, 3).mean((3, 5))
    full = small.repeat(_BLOCK, 2).repeat(_BLOCK, 3)
    return full[:, :, before_y : before_y + stamps.WINDOW, before_x : before_x + stamps.WINDOW]


@dataclass(frozen=True)
class Canvas:
    """One picture as guesses see it: undone, padded, flattened."""

    p: np.ndarray  # [SIDE * SIDE, 3] float32
    log_ground: np.ndarray  # [SIDE * SIDE] float32, log density as background
    ground: np.ndarray  # [3], the flat colour of the background
    sigma: np.ndarray  # [3]
    style: int


def gains(canvas: Canvas, guesses: Guesses, every: int = 1) -> np.ndarray:
    """[H] log odds that the guess rather than the background made the pixels it claims; every n-th pixel is looked at."""
    if canvas.style != _PIXEL_ART:
        return _gains(canvas, guesses, shares(canvas.style, 0, 0), every)
    out = np.zeros(len(guesses), np.float32)
    phase = guesses.y % _BLOCK * _BLOCK + guesses.x % _BLOCK
    for one in np.unique(phase):
        rows = np.flatnonzero(phase == one)
        out[rows] = _gains(canvas, guesses[rows], shares(canvas.style, int(one) // _BLOCK, int(one) % _BLOCK), every)
    return out


def _gains(canvas: Canvas, guesses: Guesses, table: Shares, every: int) -> np.ndarray:
    pixels = slice(0, None, every)
    at = table.offset[guesses.outline, pixels] + ((guesses.y + MARGIN) * SIDE + guesses.x + MARGIN)[:, None]
    weight = table.weight[guesses.outline, pixels]  # [H, K]
    longest = max(int((weight > 0).sum(1).max()), 1)
    at, weight = at[:, :longest], weight[:, :longest]
    three = np.stack([RGB[guesses.colour], SECOND_RGB[guesses.colour], np.broadcast_to(canvas.ground, (len(guesses), 3))], 1)
    share = table.share[guesses.outline, guesses.texture, pixels][:, :longest]
    expected = share @ three.astype(np.float32)  # [H, K, 3]
    if table.slopes is not None:
        slopes = table.slopes[:, guesses.outline, guesses.texture, pixels][:, :, :longest]
        steps = (slopes @ luma(three)[..., None])[..., 0]
        line = np.clip(3.2 * np.hypot(*steps) - 0.10, 0, 0.85)[..., None]  # as looks draws it
        expected = 1 - (1 - expected) * (1 - line) - 0.84 * 2.3 * line  # 2.3: mean of 1 / tint over the hatching
    off = (canvas.p[at] - expected) / canvas.sigma
    peak = (1 - OUTLIERS) / ((2 * np.pi) ** 1.5 * canvas.sigma.prod())
    seen = np.log(peak * np.exp(-0.5 * (off * off).sum(-1)) + OUTLIERS)
    return ((seen - canvas.log_ground[at]) * weight).sum(1) * every
