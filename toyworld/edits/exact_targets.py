"""Exact targets of the vision tasks, computed from the scene: boxes, masks, maps, drawings, skeletons, filters."""

import numpy as np

from emuedit.annotators import drawing
from toyworld.scenes import stamps
from toyworld.scenes.palette import BACKGROUND_CLASS_RGB, BOX_RGB, CLASS_RGB, MASK_RGB, PERSON, POSES, SIZE, luma
from toyworld.scenes.render import GroundTruth, quantise
from toyworld.scenes.scene import SLOTS, Scenes

BOX_WIDTH_PX = 2
GREY = 128
"""Value of the pixels that the task `inpaint` must fill."""
JOINTS = tuple(stamps.joints(0))
"""Names of the joints of a stick figure, in the order of `keypoints`."""
LIMB_RGB = np.array([(255, 60, 60), (60, 90, 255), (250, 250, 250), (70, 220, 70), (250, 220, 50)], np.float32) / 255
_LIMB_REACH_PX = 4  # largest distance of skeleton pixels from their joints
HEAD_RGB = np.array((255, 140, 0), np.float32) / 255
FILTERS = drawing.COLOUR_FILTERS
"""Names of the filters of the task `color`."""


def detect(truth: GroundTruth, slots: np.ndarray) -> np.ndarray:
    """The images with a magenta box, 2 px wide, just outside the object in `slots[n]`; uint8 [N, 64, 64, 3]."""
    line = drawing.box_outline(truth.boxes[np.arange(len(slots)), slots], SIZE, SIZE, BOX_WIDTH_PX)
    return np.where(line[..., None], quantise(BOX_RGB), truth.images)


def segment(truth: GroundTruth, slots: np.ndarray) -> np.ndarray:
    """The images with the pixels of the object in `slots[n]` filled in cyan; uint8 [N, 64, 64, 3]."""
    mask = truth.owner == slots[:, None, None]
    return np.where(mask[..., None], quantise(MASK_RGB), truth.images)


def depth(truth: GroundTruth) -> np.ndarray:
    """Disparity as grey values, bright is near; uint8 [N, 64, 64, 3]."""
    return quantise(truth.disparity[..., None].repeat(3, -1))


def normal(truth: GroundTruth) -> np.ndarray:
    """Normals as colours: (x right, y up, z to the viewer), mapped from [-1, 1] to [0, 1]; uint8 [N, 64, 64, 3]."""
    return quantise(truth.normals * np.array([0.5, -0.5, 0.5], np.float32) + 0.5)


def segmap(scenes: Scenes, truth: GroundTruth) -> np.ndarray:
    """Semantic segmentation: one colour per kind of object and per background; uint8 [N, 64, 64, 3]."""
    out = np.broadcast_to(BACKGROUND_CLASS_RGB[scenes.background][:, None, None], truth.images.shape).copy()
    for slot in range(SLOTS):
        mask = truth.owner == slot
        out[mask] = np.broadcast_to(CLASS_RGB[scenes.kind[:, slot]][:, None, None], out.shape)[mask]
    return quantise(out)


def sketch(truth: GroundTruth) -> np.ndarray:
    """Black lines on white: outlines of the objects and the stronger edges within them; uint8 [N, 64, 64, 3]."""
    grey = luma(truth.images.astype(np.float32) / 255)
    gradient_y, gradient_x = np.gradient(grey, axis=(1, 2))
    inner_edges = np.clip(3.0 * np.hypot(gradient_y, gradient_x) - 0.25, 0, 1) * (truth.owner >= 0)
    ink = np.maximum(inner_edges, _outlines(truth.owner).astype(np.float32))
    return quantise((1 - ink)[..., None].repeat(3, -1))


def contour(truth: GroundTruth) -> np.ndarray:
    """White outlines of the objects on black, for the held-out task `contour`; uint8 [N, 64, 64, 3]."""
    return quantise(_outlines(truth.owner).astype(np.float32)[..., None].repeat(3, -1))


def cutout(truth: GroundTruth) -> np.ndarray:
    """The unchanged objects on plain white, for the held-out task `cutout`; uint8 [N, 64, 64, 3]."""
    return np.where((truth.owner >= 0)[..., None], truth.images, np.uint8(255))


def keypoints(scenes: Scenes) -> np.ndarray:
    """float32 [N, 3, 7, 2]: (x, y) in px of the joints `JOINTS` in each slot. NaN if the slot has no person."""
    unit_joints = np.array([[stamps.joints(pose)[name] for name in JOINTS] for pose in range(len(POSES))], np.float32)
    is_person = scenes.kind == PERSON
    offsets = unit_joints[np.where(is_person, scenes.variant, 0)] * scenes.radius[..., None, None]
    points = offsets + np.stack([scenes.x, scenes.y], -1)[:, :, None]
    return np.where(is_person[..., None, None], points, np.nan).astype(np.float32)


def pose(scenes: Scenes) -> np.ndarray:
    """Coloured skeletons of the stick figures on black; uint8 [N, 64, 64, 3]."""
    out = np.zeros((len(scenes), SIZE, SIZE, 3), np.float32)
    axis = np.arange(SIZE, dtype=np.float32)
    joints = keypoints(scenes)
    for n, slot in np.argwhere(scenes.kind == PERSON):
        left, top = (joints[n, slot].min(0).astype(int) - _LIMB_REACH_PX).clip(0)
        right, bottom = joints[n, slot].max(0).astype(int) + 1 + _LIMB_REACH_PX
        y, x = np.meshgrid(axis[top:bottom], axis[left:right], indexing="ij")
        window = out[n, top:bottom, left:right]
        points = {name: (float(px), float(py)) for name, (px, py) in zip(JOINTS, joints[n, slot], strict=True)}
        for rgb, (a, b) in zip(LIMB_RGB, stamps.LIMBS, strict=True):
            coverage = np.clip(1.9 - stamps.segment_distance(x, y, points[a], points[b]), 0, 1)[..., None]
            window += coverage * (rgb - window)
        head_x, head_y = points["head"]
        coverage = np.clip(3.0 - np.hypot(x - head_x, y - head_y), 0, 1)[..., None]
        window += coverage * (HEAD_RGB - window)
    return quantise(out)


def _outlines(owner: np.ndarray) -> np.ndarray:
    """bool [N, 64, 64]: the two pixels on either side of every change of owner."""
    outline = np.zeros(owner.shape, bool)
    differs_y, differs_x = owner[:, 1:] != owner[:, :-1], owner[:, :, 1:] != owner[:, :, :-1]
    outline[:, 1:] |= differs_y
    outline[:, :-1] |= differs_y
    outline[:, :, 1:] |= differs_x
    outline[:, :, :-1] |= differs_x
    return outline


def apply_colour_filter(images: np.ndarray, filter_ids: np.ndarray) -> np.ndarray:
    """Apply filter `FILTERS[filter_ids[n]]` to image n, for the task `color`; uint8 [N, 64, 64, 3]."""
    out = np.empty_like(images)
    for filter_id, name in enumerate(FILTERS):
        rows = np.flatnonzero(filter_ids == filter_id)
        if len(rows):
            out[rows] = quantise(drawing.apply_colour_filter(name, images[rows].astype(np.float32) / 255))
    return out


def downsample_4x(images: np.ndarray) -> np.ndarray:
    """Average blocks of 4x4 px and repeat them to full size: the input of the held-out task `superres`; uint8."""
    n = len(images)
    small = images.reshape(n, SIZE // 4, 4, SIZE // 4, 4, 3).astype(np.float32).mean((2, 4))
    return (small + 0.5).astype(np.uint8).repeat(4, 1).repeat(4, 2)


def cut_hole(source: Scenes, slots: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A copy of the images with a grey square of 20 px over the upper left part of the object in the slot."""
    out = images.copy()
    for n, slot in enumerate(slots):
        x, y = int(source.x[n, slot]), int(source.y[n, slot])
        out[n, max(y - 16, 0) : y + 4, max(x - 16, 0) : x + 4] = GREY
    return out
