"""What lies over a whole picture: six kinds of weather and light, five styles."""

from collections.abc import Callable

import numpy as np

from toyworld.scenes import backgrounds
from toyworld.scenes.palette import CONDITIONS, SIZE, STYLES, luma
from toyworld.scenes.scene import Scenes

Look = Callable[[np.ndarray, np.ndarray, Scenes], np.ndarray]
"""(pictures [N,64,64,3] in [0,1], coverage by objects [N,64,64], scenes) -> pictures."""


def weather_and_style(scenes: Scenes, pictures: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Weather first, then style; `[N, 64, 64, 3]` in about [0, 1]."""
    for chosen, names, looks in (
        (scenes.condition, CONDITIONS, _WEATHER),
        (scenes.style, STYLES, _STYLES),
    ):
        for i, name in enumerate(names):
            rows = np.flatnonzero(chosen == i)
            if name in looks and len(rows):
                pictures[rows] = looks[name](pictures[rows], covered[rows], scenes[rows])
    return pictures


def _mix(a: np.ndarray, b: np.ndarray | float, share: np.ndarray | float) -> np.ndarray:
    return a + share * (b - a)


def _night(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    return p * np.array([0.34, 0.38, 0.58], np.float32) + np.array([0.0, 0.01, 0.06], np.float32)


def _fog(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    thick = np.linspace(0.62, 0.40, SIZE, dtype=np.float32)[:, None, None]
    return _mix(p, np.array([0.80, 0.82, 0.84], np.float32), thick)


def _streaks(p: np.ndarray, scenes: Scenes, which: int, colour: tuple[float, float, float], share: float) -> np.ndarray:
    tile = backgrounds.window(
        backgrounds.streaks(), np.full(len(scenes), which), scenes.tile_y, scenes.tile_x
    )  # swapped: another window than the background's
    return _mix(p, np.array(colour, np.float32), share * tile[..., None])


def _rain(p: np.ndarray, _covered: np.ndarray, scenes: Scenes) -> np.ndarray:
    dull = _mix(p, luma(p)[..., None], 0.35) * np.array([0.72, 0.78, 0.88], np.float32)
    return _streaks(dull, scenes, 0, (0.86, 0.92, 1.0), 0.75)


def _snowfall(p: np.ndarray, _covered: np.ndarray, scenes: Scenes) -> np.ndarray:
    dull = _mix(p, luma(p)[..., None], 0.20) * np.array([0.84, 0.87, 0.92], np.float32)
    return _streaks(dull, scenes, 1, (1.0, 1.0, 1.0), 0.97)


def _sunset(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    glow = np.linspace(1.0, 0.35, SIZE, dtype=np.float32)[:, None, None]
    warm = p * np.array([1.0, 0.70, 0.50], np.float32)
    return _mix(warm, np.array([1.0, 0.46, 0.16], np.float32), 0.34 * glow)


def _pencil(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    axis = np.arange(SIZE, dtype=np.float32)
    hatch = 0.5 + 0.5 * np.sin((axis[:, None] - axis[None]) * np.float32(np.pi / 2.5))
    grey = luma(p)
    down, along = np.gradient(grey, axis=(1, 2))
    line = np.clip(3.2 * np.hypot(down, along) - 0.10, 0, 0.85)[..., None]
    tinted = 1 - (1 - p) * (0.30 + 0.34 * hatch[..., None])
    return _mix(tinted, 0.16, line) * 0.98


def _pixels(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    block = 4
    n = len(p)
    small = p.reshape(n, SIZE // block, block, SIZE // block, block, 3).mean((2, 4))
    small = np.round(np.clip(small, 0, 1) * 6) / 6
    return small.repeat(block, 1).repeat(block, 2)


def _cartoon(p: np.ndarray, _covered: np.ndarray, _scenes: Scenes) -> np.ndarray:
    return _mix(luma(p)[..., None], p, 1.18)  # flat tones and thick rims are painted in render


def _watercolour(p: np.ndarray, covered: np.ndarray, scenes: Scenes) -> np.ndarray:
    for _ in range(2):
        p = (p + np.roll(p, 1, 1) + np.roll(p, -1, 1) + np.roll(p, 1, 2) + np.roll(p, -1, 2)) / 5
    grain = backgrounds.window(backgrounds.paper(), np.zeros(len(scenes), int), scenes.tile_x, scenes.tile_y)
    axis = np.arange(SIZE, dtype=np.float32)
    edge = np.minimum(axis, axis[::-1])
    border = np.clip((np.minimum(edge[:, None], edge[None]) + 1.2 * grain - 3.0) / 2, 0, 1)[..., None]
    wash = 0.20 + 0.80 * p + 0.035 * grain[..., None]
    return _mix(np.full_like(wash, 0.985), wash, np.maximum(border, 0.9 * covered[..., None] * (border > 0)))


_WEATHER: dict[str, Look] = {
    "night": _night,
    "fog": _fog,
    "rain": _rain,
    "snowfall": _snowfall,
    "sunset": _sunset,
}
_STYLES: dict[str, Look] = {
    "pencil sketch": _pencil,
    "pixel art": _pixels,
    "cartoon": _cartoon,
    "watercolour": _watercolour,
}
