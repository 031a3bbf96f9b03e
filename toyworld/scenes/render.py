"""Scenes to pictures, with the whole truth about them: masks, boxes, depth, normals."""

from dataclasses import dataclass

import numpy as np

from toyworld.scenes import backgrounds, stamps
from toyworld.scenes.palette import BACKGROUND_RGB, RADII, RGB, SECOND_RGB, SIZE, STYLES
from toyworld.scenes.scene import SLOTS, Scenes
from toyworld.scenes.weather_style import weather_and_style

_CHUNK = 64  # scenes at a time, so that the work stays in cache
_MARGIN = stamps.HALF + 1


@dataclass(frozen=True)
class Truth:
    """What the renderer knows of N pictures."""

    images: np.ndarray  # uint8 [N, 64, 64, 3]
    owner: np.ndarray  # int8 [N, 64, 64], the slot seen at a pixel, -1 for the background
    disparity: np.ndarray  # float32 [N, 64, 64] in [0, 1], 1 is nearest
    normals: np.ndarray  # float32 [N, 64, 64, 3], unit, x right, y down, z to the viewer

    def rows(self, which: np.ndarray) -> "Truth":
        """The same for some of the pictures."""
        return Truth(*(getattr(self, name)[which] for name in Truth.__dataclass_fields__))

    @property
    def masks(self) -> np.ndarray:
        """bool [N, 3, 64, 64], one a slot; all false for an empty one."""
        return self.owner[:, None] == np.arange(SLOTS, dtype=np.int8)[:, None, None]

    @property
    def boxes(self) -> np.ndarray:
        """float32 [N, 3, 4], x0 y0 x1 y1 in px, right and lower edges exclusive; zeros where nothing is seen."""
        masks = self.masks
        columns, rows = np.any(masks, 2), np.any(masks, 3)

        def span(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return line.argmax(-1), SIZE - line[..., ::-1].argmax(-1)

        (x0, x1), (y0, y1) = span(columns), span(rows)
        boxes = np.stack([x0, y0, x1, y1], -1).astype(np.float32)
        return np.where(np.any(masks, (2, 3))[..., None], boxes, 0)


def images(scenes: Scenes) -> np.ndarray:
    """The pictures alone, uint8 [N, 64, 64, 3]."""
    out = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for i in range(0, len(scenes), _CHUNK):
        out[i : i + _CHUNK] = _picture(scenes[i : i + _CHUNK])
    return out


def truth(scenes: Scenes) -> Truth:
    """Pictures and all that is known of them."""
    parts = [_truth(scenes[i : i + _CHUNK]) for i in range(0, len(scenes), _CHUNK)]
    return Truth(*(np.concatenate([getattr(p, name) for p in parts]) for name in Truth.__dataclass_fields__))


def quantise(picture: np.ndarray) -> np.ndarray:
    """[0, 1] to the nearest of 0..255, uint8."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _picture(scenes: Scenes) -> np.ndarray:
    return quantise(weather_and_style(scenes, *_paint(scenes)))


@dataclass(frozen=True)
class _Objects:
    """The objects in one slot of the scenes: whose they are, which stamps, and where on a canvas with a margin."""

    rows: np.ndarray
    stamp: tuple[np.ndarray, np.ndarray]  # rows of the atlas: stamp, radius
    places: list[tuple[int, slice, slice]]


def _objects(scenes: Scenes, slot: int) -> _Objects:
    rows = np.flatnonzero(scenes.present[:, slot])
    stamp = stamps.stamp_index(scenes.kind[rows, slot], scenes.variant[rows, slot])
    radius = np.searchsorted(np.array(RADII), scenes.radius[rows, slot])
    corner = _MARGIN - stamps.HALF
    tops, lefts = (scenes.y[rows, slot] + corner).tolist(), (scenes.x[rows, slot] + corner).tolist()
    places = [
        (n, slice(y, y + stamps.WINDOW), slice(x, x + stamps.WINDOW)) for n, y, x in zip(rows.tolist(), tops, lefts, strict=True)
    ]
    return _Objects(rows, (stamp, radius), places)


def _canvas(n: int, *channels: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Zeros with a margin all round, so that no window leaves it, and the view without the margin."""
    whole: np.ndarray = np.zeros((n, SIZE + 2 * _MARGIN, SIZE + 2 * _MARGIN, *channels), dtype)
    return whole, whole[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _paint(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Flat pictures before weather and style `[N, 64, 64, 3]`, and the coverage by objects `[N, 64, 64]`."""
    cartoon = scenes.style == STYLES.index("cartoon")
    canvas, picture = _canvas(len(scenes), 3)
    covered, coverage = _canvas(len(scenes))
    picture[:] = backgrounds.window(backgrounds.backgrounds(), scenes.background, scenes.tile_x, scenes.tile_y)
    flat = BACKGROUND_RGB[scenes.background[cartoon]][:, None, None]
    picture[cartoon] = flat + 0.30 * (picture[cartoon] - flat)
    atlas, patterns = stamps.atlas(), stamps.patterns()
    for slot in range(SLOTS):
        some = _objects(scenes, slot)
        colour_row = scenes.colour[some.rows, slot]
        first, second = RGB[colour_row][:, None, None], SECOND_RGB[colour_row][:, None, None]
        share = np.maximum(patterns[scenes.texture[some.rows, slot]], atlas.ink[some.stamp])[..., None]
        shade = np.where(cartoon[some.rows, None, None], atlas.flat[some.stamp], atlas.shade[some.stamp])
        colour = (first + share * (second - first)) * shade[..., None]
        alpha = atlas.alpha[some.stamp]
        for k, place in enumerate(some.places):
            under, over = canvas[place], covered[place]
            under += alpha[k, :, :, None] * (colour[k] - under)
            np.maximum(over, alpha[k], out=over)
    return picture, coverage


def _truth(scenes: Scenes) -> Truth:
    n = len(scenes)
    owners, owner = _canvas(n, dtype=np.int8)
    heights, disparity = _canvas(n)
    directions, normals = _canvas(n, 3)
    owners[:] = -1
    disparity[:] = np.linspace(0.02, 0.22, SIZE, dtype=np.float32)[:, None]
    directions[..., 2] = 1
    atlas = stamps.atlas()
    for slot in range(SLOTS):
        some = _objects(scenes, slot)
        seen = atlas.alpha[some.stamp] >= 0.5
        near = 0.10 * scenes.radius[some.rows, slot].astype(np.float32) - 0.52  # 9 px: 0.38, 14 px: 0.88
        height = near[:, None, None] + 0.12 * atlas.bump[some.stamp]
        direction = atlas.normals[some.stamp]
        for k, place in enumerate(some.places):
            np.copyto(owners[place], np.int8(slot), where=seen[k])
            np.copyto(heights[place], height[k], where=seen[k])
            np.copyto(directions[place], direction[k], where=seen[k, :, :, None])
    return Truth(_picture(scenes), owner, np.clip(disparity, 0, 1), normals)
