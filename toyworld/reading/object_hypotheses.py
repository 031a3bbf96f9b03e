"""Hypotheses about one object, scored by the log likelihood ratio of object against background over their pixels.

A hypothesis is a stamp, a radius, a colour, a texture and a position. The colour that it predicts for a pixel is a
linear mixture of three colours, the object's two and the background's. The weights depend only on the stamp, radius and
texture, so they are tabulated, and hundreds of hypotheses are scored at once. The likelihood model is ours.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from toyworld.reading.weather_removal import OUTLIERS
from toyworld.scenes import stamps
from toyworld.scenes.palette import BIG_RADIUS, CARD, LETTERS, RADII, RGB, SECOND_RGB, SHAPES, SIZE, STYLES, TEXTURES, luma

MARGIN = stamps.HALF + 3
"""Padding of images on each side, px, so that the window of every hypothesis lies inside."""
SIDE = SIZE + 2 * MARGIN
"""Side length of a padded image, px."""
N_OUTLINES = stamps.N_STAMPS * len(RADII)
_MAX_PIXELS = 600  # the largest object has 580
_BLUR_PX = 0.5  # sigma of the blur of predictions: between a render (0) and a decoder's blur
_BLOCK = 4  # px, side length of the blocks of pixel art
_PENCIL, _PIXEL_ART, _CARTOON, _WATERCOLOUR = (STYLES.index(name) for name in STYLES[1:])
_MAX_BACKGROUND = 0.35  # pixels with a larger background weight are ignored, because decoders distort edges


@dataclass(frozen=True)
class Hypotheses:
    """H hypotheses, int64 `[H]` each. An outline is a stamp at a radius: `stamp * len(RADII) + position in RADII`."""

    outline: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    x: np.ndarray  # px
    y: np.ndarray  # px

    def __len__(self) -> int:
        return len(self.outline)

    def __getitem__(self, rows: np.ndarray | slice) -> "Hypotheses":
        return Hypotheses(self.outline[rows], self.colour[rows], self.texture[rows], self.x[rows], self.y[rows])

    @property
    def kind(self) -> np.ndarray:
        """[H] position in KINDS."""
        return np.minimum(self.stamp, CARD) + (self.stamp >= CARD + len(LETTERS))

    @property
    def stamp(self) -> np.ndarray:
        """[H] first index into the atlas."""
        return self.outline // len(RADII)

    @property
    def variant(self) -> np.ndarray:
        """[H] letter of a card, pose of a person, 0 for shapes."""
        return np.where(self.stamp < CARD, 0, (self.stamp - CARD) % len(LETTERS))

    @property
    def radius(self) -> np.ndarray:
        """[H] px."""
        return np.array(RADII)[self.outline % len(RADII)]

    @property
    def big(self) -> np.ndarray:
        """[H] bool: whether the object is big."""
        return self.radius >= BIG_RADIUS


def broadcast_hypotheses(
    outline: np.ndarray, colour: np.ndarray, texture: np.ndarray, x: np.ndarray, y: np.ndarray
) -> Hypotheses:
    """Hypotheses from arrays that broadcast together, flattened."""
    return Hypotheses(*(a.ravel().astype(np.int64) for a in np.broadcast_arrays(outline, colour, texture, x, y)))


def concat_hypotheses(parts: list[Hypotheses]) -> Hypotheses:
    """Concatenate the parts in order."""
    names = ("outline", "colour", "texture", "x", "y")
    return Hypotheses(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@lru_cache(maxsize=len(STYLES))
def allowed_textures(style: int) -> np.ndarray:
    """bool [outlines, textures]: combinations that scenes of a style contain.

    Only big shapes have a texture, and letters and people are big. In pixel art all objects are big and plain.
    """
    stamp, radius = np.divmod(np.arange(N_OUTLINES), len(RADII))
    big = np.array(RADII)[radius] >= BIG_RADIUS
    shape = stamp < len(SHAPES)
    allowed = np.zeros((N_OUTLINES, len(TEXTURES)), bool)
    allowed[:, 0] = big | (shape & (style != _PIXEL_ART))
    allowed[:, 1:] = (big & shape & (style != _PIXEL_ART))[:, None]
    return allowed


@dataclass(frozen=True)
class MixTable:
    """The mixture of colours at each pixel of an outline: K pixels, of which unused ones have weight 0."""

    offset: np.ndarray  # [outlines, K] int64, from the object's centre in a padded, flattened image
    weight: np.ndarray  # [outlines, K] float32 in [0, 1], of the pixel in the score
    n_used: np.ndarray  # [outlines] number of pixels with a weight above 0; they come first
    mix: np.ndarray  # [outlines, textures, K, 3] float32, weights of first colour, second colour and background
    gradient: np.ndarray | None  # [2, outlines, textures, K, 3], vertical and horizontal gradient of `mix`; pencil only


@lru_cache(maxsize=40)
def mix_table(style: int, phase_y: int, phase_x: int) -> MixTable:
    """The table of a style. The phases (0..3, centre modulo the block size) only matter for pixel art."""
    atlas, patterns = stamps.atlas(), stamps.patterns()
    ink, alpha = atlas.ink[:, :, None], atlas.alpha[:, :, None]
    second = np.maximum(patterns[None, None], ink)  # [stamp, radius, texture, W, W]
    shade = (atlas.flat if style == _CARTOON else atlas.shade)[:, :, None]
    mix = np.stack([alpha * shade * (1 - second), alpha * shade * second, np.broadcast_to(1 - alpha, second.shape)], -1)
    mix = mix.reshape(N_OUTLINES, len(TEXTURES), stamps.WINDOW, stamps.WINDOW, 3)
    if style == _WATERCOLOUR:  # the same blur as in `weather_style`
        for _ in range(2):
            mix = (mix + sum(np.roll(mix, shift, axis) for axis in (2, 3) for shift in (1, -1))) / 5
    else:
        mix = gaussian_filter(mix, (0, 0, _BLUR_PX, _BLUR_PX, 0), mode="nearest")
    if style == _PIXEL_ART:
        mix = _average_blocks(mix, phase_y, phase_x)
    gradient = np.array(np.gradient(mix, axis=(2, 3))) if style == _PENCIL else None
    background = mix[:, 0, ..., 2].reshape(N_OUTLINES, -1)
    pixels = np.argsort(background, axis=1, kind="stable")[:, :_MAX_PIXELS]  # those with least background first
    dy, dx = np.divmod(pixels, stamps.WINDOW)
    background = background[np.arange(N_OUTLINES)[:, None], pixels]

    def take_pixels(a: np.ndarray) -> np.ndarray:
        a = a.reshape(N_OUTLINES, len(TEXTURES), -1, 3)
        return np.take_along_axis(a, pixels[:, None, :, None], 2).astype(np.float32)

    weight = np.where(background < _MAX_BACKGROUND, 1 - background, 0).astype(np.float32)
    return MixTable(
        offset=(dy - stamps.HALF) * SIDE + dx - stamps.HALF,
        weight=weight,
        n_used=(weight > 0).sum(1),
        mix=take_pixels(mix),
        gradient=None if gradient is None else np.stack([take_pixels(g) for g in gradient]),
    )


def _average_blocks(mix: np.ndarray, phase_y: int, phase_x: int) -> np.ndarray:
    """Means over blocks of 4 x 4 px, aligned as they are when the object's centre is at `phase` modulo 4."""
    before_y, before_x = ((phase - stamps.HALF) % _BLOCK for phase in (phase_y, phase_x))
    side = stamps.WINDOW + 2 * _BLOCK - 1
    side -= side % _BLOCK
    pad = [(0, 0), (0, 0), *((before, side - stamps.WINDOW - before) for before in (before_y, before_x)), (0, 0)]
    padded = np.pad(mix, pad)
    padded[..., 2] = np.pad(mix[..., 2], pad[:-1], constant_values=1)
    n = side // _BLOCK
    means = padded.reshape(*mix.shape[:2], n, _BLOCK, n, _BLOCK, 3).mean((3, 5))
    full = means.repeat(_BLOCK, 2).repeat(_BLOCK, 3)
    return full[:, :, before_y : before_y + stamps.WINDOW, before_x : before_x + stamps.WINDOW]


@dataclass(frozen=True)
class PaddedPicture:
    """One clean image (see `weather_removal`), padded by `MARGIN` and flattened, with its background model."""

    colours: np.ndarray  # [SIDE * SIDE, 3] float32
    log_background: np.ndarray  # [SIDE * SIDE] float32, log density of each colour under the background's distribution
    background_rgb: np.ndarray  # [3], base colour of the background
    sigma: np.ndarray  # [3], standard deviation of clean colours
    style: int


def log_likelihood_ratios(picture: PaddedPicture, hypotheses: Hypotheses, stride: int = 1) -> np.ndarray:
    """[H] log likelihood ratio of each hypothesis against the background.

    The ratio is the sum over the pixels of the outline of w log(p_object / p_background), where w is the weight of the
    pixel in `MixTable`. With a stride above 1 only every stride-th pixel is evaluated, and the sum is multiplied by it.
    """
    if picture.style != _PIXEL_ART:
        return _score(picture, hypotheses, mix_table(picture.style, 0, 0), stride)
    out = np.zeros(len(hypotheses), np.float32)
    phases = hypotheses.y % _BLOCK * _BLOCK + hypotheses.x % _BLOCK
    for phase in np.unique(phases):
        rows = np.flatnonzero(phases == phase)
        table = mix_table(picture.style, int(phase) // _BLOCK, int(phase) % _BLOCK)
        out[rows] = _score(picture, hypotheses[rows], table, stride)
    return out


def _score(picture: PaddedPicture, hypotheses: Hypotheses, table: MixTable, stride: int) -> np.ndarray:
    pixels = slice(0, max(int(table.n_used[hypotheses.outline].max()), 1), stride)
    centre = (hypotheses.y + MARGIN) * SIDE + hypotheses.x + MARGIN
    position = table.offset[hypotheses.outline, pixels] + centre[:, None]  # [H, K]
    weight = table.weight[hypotheses.outline, pixels]  # [H, K]
    background_rgb = np.broadcast_to(picture.background_rgb, (len(hypotheses), 3))
    colours = np.stack([RGB[hypotheses.colour], SECOND_RGB[hypotheses.colour], background_rgb], 1)  # [H, 3 colours, RGB]
    mix = table.mix[hypotheses.outline, hypotheses.texture, pixels]
    expected = mix @ colours.astype(np.float32)  # [H, K, 3]
    if table.gradient is not None:
        gradient = table.gradient[:, hypotheses.outline, hypotheses.texture, pixels]
        luma_gradient = (gradient @ luma(colours)[..., None])[..., 0]
        line = np.clip(3.2 * np.hypot(*luma_gradient) - 0.10, 0, 0.85)[..., None]  # as in `weather_style`
        expected = 1 - (1 - expected) * (1 - line) - 0.84 * 2.3 * line  # 2.3: mean of 1 / tint over the hatching
    # p_object is a mixture of a Gaussian around the expected colour and the uniform density of outliers
    residual = (picture.colours[position] - expected) / picture.sigma
    peak = (1 - OUTLIERS) / ((2 * np.pi) ** 1.5 * picture.sigma.prod())
    distance = residual[..., 0] ** 2 + residual[..., 1] ** 2 + residual[..., 2] ** 2  # faster than sum(-1)
    log_object = np.log(peak * np.exp(-0.5 * distance) + OUTLIERS)
    return ((log_object - picture.log_background[position]) * weight).sum(1) * stride
