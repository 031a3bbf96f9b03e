"""Exact targets of the vision tasks, drawn from the truth: boxes, masks, maps, lines, skeletons, colour filters."""

import numpy as np

from emuedit.annotators import drawing
from toyworld.scenes import stamps
from toyworld.scenes.palette import BACKGROUND_CLASS_RGB, BOX_RGB, CLASS_RGB, MASK_RGB, PERSON, POSES, SIZE, luma
from toyworld.scenes.render import Truth, quantise
from toyworld.scenes.scene import SLOTS, Scenes

BOX_WIDTH_PX = 2
JOINTS = tuple(stamps.joints(0))
LIMB_RGB = np.array([(255, 60, 60), (60, 90, 255), (250, 250, 250), (70, 220, 70), (250, 220, 50)], np.float32) / 255
HEAD_RGB = np.array((255, 140, 0), np.float32) / 255


def detect(truth: Truth, slots: np.ndarray) -> np.ndarray:
    """A magenta box, 2 px wide, just outside the object in `slots[n]`; uint8 [N, 64, 64, 3]."""
    line = drawing.frame(truth.boxes[np.arange(len(slots)), slots], SIZE, SIZE, BOX_WIDTH_PX)
    return np.where(line[..., None], quantise(BOX_RGB), truth.images)


def segment(truth: Truth, slots: np.ndarray) -> np.ndarray:
    """The object in `slots[n]` painted over in cyan; uint8 [N, 64, 64, 3]."""
    mask = truth.owner == slots[:, None, None]
    return np.where(mask[..., None], quantise(MASK_RGB), truth.images)


def depth(truth: Truth) -> np.ndarray:
    """Disparity as grey, near is bright; uint8 [N, 64, 64, 3]."""
    return quantise(truth.disparity[..., None].repeat(3, -1))


def normal(truth: Truth) -> np.ndarray:
    """Normals as colour, (x right, y up, z to the viewer) from [-1, 1] to [0, 1]; uint8 [N, 64, 64, 3]."""
    return quantise(truth.normals * np.array([0.5, -0.5, 0.5], np.float32) + 0.5)


def segmap(scenes: Scenes, truth: Truth) -> np.ndarray:
    """One colour per kind of object and per background; uint8 [N, 64, 64, 3]."""
    out = np.broadcast_to(BACKGROUND_CLASS_RGB[scenes.background][:, None, None], truth.images.shape).copy()
    for slot in range(SLOTS):
        mask = truth.owner == slot
        out[mask] = np.broadcast_to(CLASS_RGB[scenes.kind[:, slot]][:, None, None], out.shape)[mask]
    return quantise(out)


def sketch(truth: Truth) -> np.ndarray:
    """Black lines on white: outlines of the objects and the stronger edges within them; uint8 [N, 64, 64, 3]."""
    grey = luma(truth.images.astype(np.float32) / 255)
    down, along = np.gradient(grey, axis=(1, 2))
    inner = np.clip(3.0 * np.hypot(down, along) - 0.25, 0, 1) * (truth.owner >= 0)
    ink = np.maximum(inner, _outlines(truth.owner).astype(np.float32))
    return quantise((1 - ink)[..., None].repeat(3, -1))


def contour(truth: Truth) -> np.ndarray:
    """White outlines of the objects on black (held out for task inversion); uint8 [N, 64, 64, 3]."""
    return quantise(_outlines(truth.owner).astype(np.float32)[..., None].repeat(3, -1))


def keypoints(scenes: Scenes) -> np.ndarray:
    """float32 [N, 3, 7, 2]: (x, y) in px of the joints `JOINTS` of the figure in every slot; NaN where there is none."""
    figures = np.array([[stamps.joints(pose)[name] for name in JOINTS] for pose in range(len(POSES))], np.float32)
    person = scenes.kind == PERSON
    shape = figures[np.where(person, scenes.variant, 0)] * scenes.radius[..., None, None]
    at = shape + np.stack([scenes.x, scenes.y], -1)[:, :, None]
    return np.where(person[..., None, None], at, np.nan).astype(np.float32)


def pose(scenes: Scenes) -> np.ndarray:
    """Coloured skeletons of the stick figures on black; uint8 [N, 64, 64, 3]."""
    out = np.zeros((len(scenes), SIZE, SIZE, 3), np.float32)
    axis = np.arange(SIZE, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    joints = keypoints(scenes)
    for n, slot in np.argwhere(scenes.kind == PERSON):
        at = {name: (float(px), float(py)) for name, (px, py) in zip(JOINTS, joints[n, slot], strict=True)}
        for rgb, (a, b) in zip(LIMB_RGB, stamps.LIMBS, strict=True):
            cover = np.clip(1.9 - stamps.segment_distance(x, y, at[a], at[b]), 0, 1)[..., None]
            out[n] += cover * (rgb - out[n])
        head = np.clip(3.0 - np.hypot(x - at["head"][0], y - at["head"][1]), 0, 1)[..., None]
        out[n] += head * (HEAD_RGB - out[n])
    return quantise(out)


def _outlines(owner: np.ndarray) -> np.ndarray:
    """bool [N, 64, 64]: the two pixels on either side of every change of owner."""
    change = np.zeros(owner.shape, bool)
    down, along = owner[:, 1:] != owner[:, :-1], owner[:, :, 1:] != owner[:, :, :-1]
    change[:, 1:] |= down
    change[:, :-1] |= down
    change[:, :, 1:] |= along
    change[:, :, :-1] |= along
    return change


FILTERS = drawing.FILTERS


def colour_filter(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The colour task: filter `FILTERS[which[n]]` upon picture n; uint8 [N, 64, 64, 3]."""
    out = np.empty_like(images)
    for i, name in enumerate(FILTERS):
        rows = np.flatnonzero(which == i)
        if len(rows):
            out[rows] = quantise(drawing.filtered(name, images[rows].astype(np.float32) / 255))
    return out


def quarter(images: np.ndarray) -> np.ndarray:
    """Four times smaller, shown at full size again (held out: the input of super-resolution)."""
    n = len(images)
    small = images.reshape(n, SIZE // 4, 4, SIZE // 4, 4, 3).astype(np.float32).mean((2, 4))
    return (small + 0.5).astype(np.uint8).repeat(4, 1).repeat(4, 2)
