"""Remove weather and style from an image.

Apart from streaks and lines, every weather and style is an affine map of the colour at each pixel: I = A p + b, where p
is the clean image (before weather and style) and I the image as rendered. A and b are estimated from renders.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter

from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.scenes import render
from toyworld.scenes.palette import BACKGROUND_RGB, BACKGROUNDS, SIZE, STYLES, luma
from toyworld.scenes.scene import EMPTY, Scenes, generate_scenes, scene_numbers
from toyworld.scenes.weather_style import apply_weather_and_style

PENCIL = STYLES.index("pencil sketch")
SIGMA = 0.05
"""Standard deviation of the difference between rendered and expected colours, in [0, 1], before the removal."""
OUTLIERS = 0.04
"""Weight of the uniform density over all colours in the mixture models of pixel colours."""
_LOW, _STEP, _BINS = -0.25, 0.05, 32  # histograms of clean colours: lower bound, bin width, bins per channel
_MEAN_TINT = 0.47  # mean over the hatching of 0.30 + 0.34 hatch, the tint of pencil sketches in `weather_style`
_HATCH_PX = 4.0  # sigma of the window in which the strength of the hatching is estimated
_BLUR_PX = 0.7  # sigma by which half of the references are blurred, as a decoder may blur images
_BORDER_PX = 8  # width of the border zone: watercolours show white paper there


@dataclass(frozen=True)
class WeatherInverse:
    """The inverse of one scene class's weather and style, and the colours of its background after the removal."""

    inverse: np.ndarray  # [64, 64, 3, 3] float32, A^-1
    offset: np.ndarray  # [64, 64, 3] float32, b
    sigma: np.ndarray  # [3], SIGMA after the removal
    log_background: np.ndarray  # [2, 32^3] float32, log density of background colours: inner zone, border zone
    hatched: bool  # pencil sketches

    def apply(self, pictures: np.ndarray) -> np.ndarray:
        """The clean images p of I, `[N, 64, 64, 3]`."""
        return _remove(self.inverse, self.offset, pictures, self.hatched)


def log_background_density(inverse: WeatherInverse, clean: np.ndarray) -> np.ndarray:
    """Log density `[64, 64]` of each colour of a clean image `[64, 64, 3]` under the background's distribution."""
    edge_distance = np.minimum(np.arange(SIZE), np.arange(SIZE)[::-1])
    zone = (np.minimum(edge_distance[:, None], edge_distance[None]) < _BORDER_PX).astype(int)
    return inverse.log_background[zone, bin_indices(clean)]


@lru_cache(maxsize=len(SCENE_CLASSES))
def fit_inverse(scene_class: int) -> WeatherInverse:
    """Fit the inverse of a scene class to renders (about 0.1 s at the first call for a class)."""
    background, condition, style = SCENE_CLASSES[scene_class]
    references, is_background = _references(int(background))
    zero = np.zeros(len(references), np.int16)
    references = replace(references, condition=zero + condition, style=zero + style)
    matrix, offset = _fit_affine(references)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    sigma = SIGMA * np.sqrt((inverse**2).sum(-1).mean((0, 1)))
    empty_scenes = replace(
        references[:16],
        kind=np.full((16, references.kind.shape[1]), EMPTY, np.int16),
        tile_x=references.tile_y[:16],
        tile_y=references.tile_x[:16],
    )
    hatched = bool(style == PENCIL)
    clean_empty, clean = (
        _remove(inverse, offset, _blur_half(render.images(scenes)), hatched) for scenes in (empty_scenes, references)
    )
    border = np.ones((SIZE, SIZE), bool)
    border[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = False
    densities = []
    for zone in (~border, border):
        colours = np.concatenate([clean_empty[:, zone].reshape(-1, 3), clean[is_background & zone]])
        densities.append(log_density(colours, sigma))
    return WeatherInverse(inverse, offset.astype(np.float32), sigma, np.stack(densities), hatched)


@lru_cache(maxsize=len(BACKGROUNDS))
def _references(background: int) -> tuple[Scenes, np.ndarray]:
    """48 scenes with this background, in any weather and style, and their pixels away from objects, bool [48, 64, 64]."""
    pool = generate_scenes(scene_numbers("train", 900_000, 800))
    references = pool[np.flatnonzero(pool.background == background)[:48]]
    return references, ~maximum_filter(render.truth(references).owner >= 0, (1, 5, 5))


def _fit_affine(references: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """A `[64, 64, 3, 3]` and b `[64, 64, 3]`, from images of one colour. The median over scenes drops streaks."""
    scenes = references[:15]
    full_coverage = np.ones((len(scenes), SIZE, SIZE), np.float32)
    responses = []  # to black, red, green and blue
    for colour in np.vstack([np.zeros((1, 3)), np.eye(3)]).astype(np.float32):
        pictures = np.broadcast_to(colour, (*full_coverage.shape, 3)).copy()
        responses.append(np.median(apply_weather_and_style(scenes, pictures, full_coverage), 0))
    if scenes.style[0] == STYLES.index("watercolour"):  # A and b are constant except at the border of the paper
        responses = [np.broadcast_to(np.median(response, (0, 1)), response.shape) for response in responses]
    offset = responses[0]
    return np.stack([response - offset for response in responses[1:]], -1), offset


def _remove(inverse: np.ndarray, offset: np.ndarray, pictures: np.ndarray, hatched: bool) -> np.ndarray:
    if not hatched:
        return _transform_colours(inverse, pictures - offset)
    # A decoder may lose the hatching in places, so its local strength in [0, 1] is estimated by least squares
    # and only that much of it is removed.
    darkness = 1 - luma(pictures) / 0.98
    inverse_tint = inverse[..., 0, 0] * 0.98  # 1 / (0.30 + 0.34 hatch)
    wave = 1 / inverse_tint - _MEAN_TINT
    window = (0, _HATCH_PX, _HATCH_PX)
    strength = gaussian_filter(darkness * wave, window) / (gaussian_filter(darkness * wave**2, window) / _MEAN_TINT + 1e-4)
    tint = _MEAN_TINT + np.clip(strength, 0, 1) * wave
    return 1 - (1 - pictures / 0.98) / tint[..., None]


def _transform_colours(matrix: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """The colours `[N, 64, 64, 3]` after the matrix of their pixel `[64, 64, 3, 3]`: seven times as fast as an einsum."""
    weights, planes = (np.ascontiguousarray(np.moveaxis(a, -1, 0)) for a in (matrix, pictures))  # of each input channel
    out = np.empty_like(pictures)
    for channel in range(3):
        total = weights[0, ..., channel] * planes[0]
        for other in (1, 2):
            total += weights[other, ..., channel] * planes[other]
        out[..., channel] = total
    return out


def _blur_half(pictures: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [0, 1], every second one blurred."""
    out = pictures.astype(np.float32) / 255
    out[::2] = gaussian_filter(out[::2], (0, _BLUR_PX, _BLUR_PX, 0))
    return out


def bin_indices(colours: np.ndarray) -> np.ndarray:
    """Indices into a flattened 32 x 32 x 32 histogram for colours `[..., 3]`; out of range: the nearest bin."""
    index = np.clip((colours - _LOW) / _STEP, 0, _BINS - 1).astype(np.int64)
    return (index[..., 0] * _BINS + index[..., 1]) * _BINS + index[..., 2]


def log_density(colours: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Log density `[32^3]` of colours `[M, 3]`: a histogram smoothed by sigma, mixed with a uniform outlier density."""
    count = np.bincount(bin_indices(colours), minlength=_BINS**3).reshape(_BINS, _BINS, _BINS)
    smooth = gaussian_filter(count.astype(np.float32), sigma / _STEP, mode="nearest") / (len(colours) * _STEP**3)
    return np.log((1 - OUTLIERS) * smooth + OUTLIERS).ravel()


def background_colour(scene_class: int) -> np.ndarray:
    """[3] base colour of the background, without texture."""
    return BACKGROUND_RGB[SCENE_CLASSES[scene_class, 0]]
