"""The renderer: scenes to images with their ground truth (masks, boxes, disparity, normals)."""

from dataclasses import dataclass

import numpy as np

from toyworld.scenes import backgrounds, stamps
from toyworld.scenes.palette import BACKGROUND_RGB, RADII, RGB, SECOND_RGB, SIZE, STYLES
from toyworld.scenes.scene import SLOTS, Scenes
from toyworld.scenes.weather_style import apply_weather_and_style

_CHUNK = 64  # scenes rendered at a time, small enough for the CPU cache
_MARGIN = stamps.HALF + 1  # px, so that no stamp leaves the padded canvas


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of N images."""

    images: np.ndarray  # uint8 [N, 64, 64, 3]
    owner: np.ndarray  # int8 [N, 64, 64], slot of the visible object, -1 for the background
    disparity: np.ndarray  # float32 [N, 64, 64] in [0, 1], 1 is nearest
    normals: np.ndarray  # float32 [N, 64, 64, 3], unit, x right, y down, z to the viewer

    def select(self, rows: np.ndarray) -> "GroundTruth":
        """The ground truth of the images at `rows` (indices or bool)."""
        return GroundTruth(*(getattr(self, name)[rows] for name in GroundTruth.__dataclass_fields__))

    @property
    def masks(self) -> np.ndarray:
        """bool [N, 3, 64, 64], one mask per slot; all False for an empty slot."""
        return self.owner[:, None] == np.arange(SLOTS, dtype=np.int8)[:, None, None]

    @property
    def boxes(self) -> np.ndarray:
        """float32 [N, 3, 4]: x0 y0 x1 y1 in px, right and lower edges exclusive; zeros where no pixel is visible."""
        masks = self.masks
        columns, rows = np.any(masks, 2), np.any(masks, 3)

        def span(occupied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return occupied.argmax(-1), SIZE - occupied[..., ::-1].argmax(-1)

        (x0, x1), (y0, y1) = span(columns), span(rows)
        boxes = np.stack([x0, y0, x1, y1], -1).astype(np.float32)
        return np.where(np.any(masks, (2, 3))[..., None], boxes, 0)


def images(scenes: Scenes) -> np.ndarray:
    """Render the images without ground truth; uint8 [N, 64, 64, 3]."""
    out = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for i in range(0, len(scenes), _CHUNK):
        out[i : i + _CHUNK] = _picture(scenes[i : i + _CHUNK])
    return out


def truth(scenes: Scenes) -> GroundTruth:
    """Render the images with their ground truth."""
    parts = [_truth(scenes[i : i + _CHUNK]) for i in range(0, max(len(scenes), 1), _CHUNK)]
    return GroundTruth(*(np.concatenate([getattr(p, name) for p in parts]) for name in GroundTruth.__dataclass_fields__))


def quantise(picture: np.ndarray) -> np.ndarray:
    """Round colours in [0, 1] to uint8 in 0..255; values outside of [0, 1] are clipped."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _picture(scenes: Scenes) -> np.ndarray:
    return quantise(apply_weather_and_style(scenes, *_compose(scenes)))


@dataclass(frozen=True)
class _Objects:
    """The objects in one slot of the scenes; K of them."""

    rows: np.ndarray  # [K] the scene of each object
    stamp: tuple[np.ndarray, np.ndarray]  # index into the atlas: stamp [K], radius [K]
    windows: list[tuple[int, slice, slice]]  # scene, rows and columns of each stamp's window on the padded canvas


def _objects(scenes: Scenes, slot: int) -> _Objects:
    rows = np.flatnonzero(scenes.present[:, slot])
    stamp = stamps.stamp_index(scenes.kind[rows, slot], scenes.variant[rows, slot])
    radius = np.searchsorted(np.array(RADII), scenes.radius[rows, slot])
    corner = _MARGIN - stamps.HALF
    tops, lefts = (scenes.y[rows, slot] + corner).tolist(), (scenes.x[rows, slot] + corner).tolist()
    windows = [
        (n, slice(y, y + stamps.WINDOW), slice(x, x + stamps.WINDOW)) for n, y, x in zip(rows.tolist(), tops, lefts, strict=True)
    ]
    return _Objects(rows, (stamp, radius), windows)


def _canvas(n: int, *channels: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Zeros with a margin on all sides, and a view of them without the margin `[n, 64, 64, *channels]`."""
    padded: np.ndarray = np.zeros((n, SIZE + 2 * _MARGIN, SIZE + 2 * _MARGIN, *channels), dtype)
    return padded, padded[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _compose(scenes: Scenes) -> tuple[np.ndarray, np.ndarray]:
    """Compose backgrounds and objects, before weather and style.

    Returns the images `[N, 64, 64, 3]` in [0, 1] and the coverage by objects `[N, 64, 64]` in [0, 1].
    """
    cartoon = scenes.style == STYLES.index("cartoon")
    canvas, picture = _canvas(len(scenes), 3)
    coverage_canvas, coverage = _canvas(len(scenes))
    picture[:] = backgrounds.cut_windows(backgrounds.background_tiles(), scenes.background, scenes.tile_x, scenes.tile_y)
    base_rgb = BACKGROUND_RGB[scenes.background[cartoon]][:, None, None]
    picture[cartoon] = base_rgb + 0.30 * (picture[cartoon] - base_rgb)  # cartoons have flatter backgrounds
    atlas, patterns = stamps.atlas(), stamps.patterns()
    for slot in range(SLOTS):
        objects = _objects(scenes, slot)
        colour_row = scenes.colour[objects.rows, slot]
        first, second = RGB[colour_row][:, None, None], SECOND_RGB[colour_row][:, None, None]
        second_weight = np.maximum(patterns[scenes.texture[objects.rows, slot]], atlas.ink[objects.stamp])[..., None]
        shade = np.where(cartoon[objects.rows, None, None], atlas.flat[objects.stamp], atlas.shade[objects.stamp])
        colour = (first + second_weight * (second - first)) * shade[..., None]
        alpha = atlas.alpha[objects.stamp]
        for k, window in enumerate(objects.windows):
            background, covered = canvas[window], coverage_canvas[window]
            background += alpha[k, :, :, None] * (colour[k] - background)
            np.maximum(covered, alpha[k], out=covered)
    return picture, coverage


def _truth(scenes: Scenes) -> GroundTruth:
    """The ground truth of a chunk of scenes. Later slots hide earlier ones; big objects are nearer."""
    n = len(scenes)
    owner_canvas, owner = _canvas(n, dtype=np.int8)
    disparity_canvas, disparity = _canvas(n)
    normal_canvas, normals = _canvas(n, 3)
    owner_canvas[:] = -1
    disparity[:] = np.linspace(0.02, 0.22, SIZE, dtype=np.float32)[:, None]
    normal_canvas[..., 2] = 1
    atlas = stamps.atlas()
    for slot in range(SLOTS):
        objects = _objects(scenes, slot)
        opaque = atlas.alpha[objects.stamp] >= 0.5
        base = 0.10 * scenes.radius[objects.rows, slot].astype(np.float32) - 0.52  # 9 px: 0.38, 14 px: 0.88
        object_disparity = base[:, None, None] + 0.12 * atlas.bump[objects.stamp]
        object_normals = atlas.normals[objects.stamp]
        for k, window in enumerate(objects.windows):
            np.copyto(owner_canvas[window], np.int8(slot), where=opaque[k])
            np.copyto(disparity_canvas[window], object_disparity[k], where=opaque[k])
            np.copyto(normal_canvas[window], object_normals[k], where=opaque[k, :, :, None])
    return GroundTruth(_picture(scenes), owner, np.clip(disparity, 0, 1), normals)
