"""Weather and style layers: functions that change a whole image. There are six weather conditions and five styles."""

from collections.abc import Callable

import numpy as np

from toyworld.scenes import backgrounds
from toyworld.scenes.palette import CONDITIONS, SIZE, STYLES, luma
from toyworld.scenes.scene import Scenes

Layer = Callable[[np.ndarray, np.ndarray, Scenes], np.ndarray]
"""(images [N, 64, 64, 3] in [0, 1], coverage by objects [N, 64, 64] in [0, 1], scenes) -> images."""


def apply_weather_and_style(scenes: Scenes, pictures: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Apply the weather of each scene and then its style, in place; `[N, 64, 64, 3]` in about [0, 1]."""
    for values, names, layers in (
        (scenes.condition, CONDITIONS, _WEATHER),
        (scenes.style, STYLES, _STYLES),
    ):
        for i, name in enumerate(names):
            rows = np.flatnonzero(values == i)
            if name in layers and len(rows):
                pictures[rows] = layers[name](pictures[rows], coverage[rows], scenes[rows])
    return pictures


def _blend(a: np.ndarray, b: np.ndarray | float, weight: np.ndarray | float) -> np.ndarray:
    return a + weight * (b - a)


def _night(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """Darken the image and tint it blue."""
    return p * np.array([0.34, 0.38, 0.58], np.float32) + np.array([0.0, 0.01, 0.06], np.float32)


def _fog(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """Blend light grey over the image, more at the top."""
    opacity = np.linspace(0.62, 0.40, SIZE, dtype=np.float32)[:, None, None]
    return _blend(p, np.array([0.80, 0.82, 0.84], np.float32), opacity)


def _precipitation(
    p: np.ndarray, scenes: Scenes, tile_row: int, colour: tuple[float, float, float], opacity: float
) -> np.ndarray:
    """Blend a precipitation tile over the images p, in the given colour."""
    # tile_x and tile_y are swapped so that this window differs from the background's
    tile = backgrounds.cut_windows(
        backgrounds.precipitation_tiles(), np.full(len(scenes), tile_row), scenes.tile_y, scenes.tile_x
    )
    return _blend(p, np.array(colour, np.float32), opacity * tile[..., None])


def _rain(p: np.ndarray, _coverage: np.ndarray, scenes: Scenes) -> np.ndarray:
    """Desaturate, darken and add streaks."""
    dull = _blend(p, luma(p)[..., None], 0.35) * np.array([0.72, 0.78, 0.88], np.float32)
    return _precipitation(dull, scenes, 0, (0.86, 0.92, 1.0), 0.75)


def _snowfall(p: np.ndarray, _coverage: np.ndarray, scenes: Scenes) -> np.ndarray:
    """Desaturate, darken a little and add flakes."""
    dull = _blend(p, luma(p)[..., None], 0.20) * np.array([0.84, 0.87, 0.92], np.float32)
    return _precipitation(dull, scenes, 1, (1.0, 1.0, 1.0), 0.97)


def _sunset(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """Tint the image orange, more at the top."""
    glow = np.linspace(1.0, 0.35, SIZE, dtype=np.float32)[:, None, None]
    warm = p * np.array([1.0, 0.70, 0.50], np.float32)
    return _blend(warm, np.array([1.0, 0.46, 0.16], np.float32), 0.34 * glow)


def _pencil(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """A pale tint with diagonal hatching, and dark lines along edges of luma."""
    axis = np.arange(SIZE, dtype=np.float32)
    hatch = 0.5 + 0.5 * np.sin((axis[:, None] - axis[None]) * np.float32(np.pi / 2.5))
    grey = luma(p)
    down, along = np.gradient(grey, axis=(1, 2))
    line = np.clip(3.2 * np.hypot(down, along) - 0.10, 0, 0.85)[..., None]
    tinted = 1 - (1 - p) * (0.30 + 0.34 * hatch[..., None])
    return _blend(tinted, 0.16, line) * 0.98


def _pixel_art(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """Blocks of 4 x 4 px, seven levels per channel."""
    block = 4
    n = len(p)
    small = p.reshape(n, SIZE // block, block, SIZE // block, block, 3).mean((2, 4))
    small = np.round(np.clip(small, 0, 1) * 6) / 6
    return small.repeat(block, 1).repeat(block, 2)


def _cartoon(p: np.ndarray, _coverage: np.ndarray, _scenes: Scenes) -> np.ndarray:
    """Raise the saturation. `render` draws the flat tones and thick rims of cartoons."""
    return _blend(luma(p)[..., None], p, 1.18)


def _watercolour(p: np.ndarray, coverage: np.ndarray, scenes: Scenes) -> np.ndarray:
    """Blur, pale colours, paper grain and a ragged white border."""
    for _ in range(2):
        p = (p + np.roll(p, 1, 1) + np.roll(p, -1, 1) + np.roll(p, 1, 2) + np.roll(p, -1, 2)) / 5
    grain = backgrounds.cut_windows(backgrounds.paper_tile(), np.zeros(len(scenes), int), scenes.tile_x, scenes.tile_y)
    axis = np.arange(SIZE, dtype=np.float32)
    edge = np.minimum(axis, axis[::-1])
    border = np.clip((np.minimum(edge[:, None], edge[None]) + 1.2 * grain - 3.0) / 2, 0, 1)[..., None]
    wash = 0.20 + 0.80 * p + 0.035 * grain[..., None]
    return _blend(np.full_like(wash, 0.985), wash, np.maximum(border, 0.9 * coverage[..., None] * (border > 0)))


_WEATHER: dict[str, Layer] = {
    "night": _night,
    "fog": _fog,
    "rain": _rain,
    "snowfall": _snowfall,
    "sunset": _sunset,
}
_STYLES: dict[str, Layer] = {
    "pencil sketch": _pencil,
    "pixel art": _pixel_art,
    "cartoon": _cartoon,
    "watercolour": _watercolour,
}
