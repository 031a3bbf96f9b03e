"""The annotators for photographs: `world.annotators: emuedit/annotators/photo_annotators.py`.

To use other networks, write a Python file in a separate folder, and set `world.annotators` to it:

    from emuedit.annotators.photo_annotators import Annotators

    annotate = Annotators(depth="Intel/dpt-large", people=..., pose=..., segmap=..., device="auto")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emuedit import config
from emuedit.annotators import derived_maps, drawing, pose_estimation, semantic_segmentation
from emuedit.models import depth as depth_estimation
from emuedit.models import image_tensors
from emuedit.runtime import Runtime

BOX_RGB, MASK_RGB = np.array([(255, 0, 255), (0, 255, 255)], np.uint8)
BATCH = 8
"""Images per forward pass of a network."""
_MIN_FILTER_CHANGE = 8
"""Levels (of 255) by which a colour filter must change a channel in a hundredth of the pixels, to give another image. Ours."""

Annotation = tuple[np.ndarray, np.ndarray]
"""Target images uint8 [N, H, W, 3], and bool [N]: whether each target is valid."""


@dataclass(frozen=True)
class Annotators:
    """A callable with the networks of the vision tasks.

    Networks are hub ids, or folders relative to the working directory (in the stage `pairs`, to the project's); each is loaded on
    first use.
    """

    depth: str | None
    """Relative depth, for the tasks `depth` and `normal`; None: `world.depth`, set by the stage `pairs`."""
    people: str
    """Object detector with the class "person", for the task `pose`."""
    pose: str
    """ViTPose, for the task `pose`."""
    segmap: str
    """Semantic segmentation, for the task `segmap`."""
    device: str
    """auto, cpu, cuda or mps."""

    def __call__(
        self, task: str, images: np.ndarray, words: Sequence[str], boxes_px: np.ndarray, masks: np.ndarray
    ) -> Annotation:
        """Annotate images uint8 [N, H, W, 3] for a vision task -> targets of that shape, and bool [N] of valid ones.

        `words`: filter names (task color); `boxes_px`: [N, 4] (x0 y0 x1 y1), the objects (detect); `masks`:
        bool [N, H, W], the objects' pixels (segment); other tasks ignore them. A target is invalid if it has no information: an
        empty box or mask, a box that fills the image, an unknown filter, flat depth, no edge, no
        person, or a single class. Raises ValueError for another task.
        """
        height, width = images.shape[1:3]
        if task == "detect":
            line = drawing.box_outline(boxes_px, height, width, max(2, round(max(height, width) / 128)))
            return np.where(line[..., None], BOX_RGB, images), np.asarray(line.any((1, 2)))
        if task == "segment":
            return np.where(masks[..., None], MASK_RGB, images), np.asarray(masks.any((1, 2)))
        if task == "color":
            return _apply_colour_filters(images, words)
        annotate_task = {
            "depth": self._depth,
            "normal": self._normal,
            "sketch": _sketch,
            "pose": self._pose,
            "segmap": self._segmap,
        }
        if task not in annotate_task:
            raise ValueError(f"want a task out of detect, segment, color, {', '.join(annotate_task)}; got {task!r}")
        return _run_in_batches(annotate_task[task], images)

    @cached_property
    def _device(self) -> str:
        return Runtime.choose(self.device).device

    @cached_property
    def _depth_estimator(self) -> depth_estimation.DepthEstimator:
        if self.depth is None:
            raise ValueError("want a depth network for the tasks depth and normal, got none; name one: Annotators(depth=...)")
        return depth_estimation.load(config.resolve_path(self.depth), self._device)

    @cached_property
    def _pose_estimator(self) -> pose_estimation.PoseEstimator:
        return pose_estimation.load(config.resolve_path(self.people), config.resolve_path(self.pose), self._device)

    @cached_property
    def _semantic_segmenter(self) -> semantic_segmentation.SemanticSegmenter:
        return semantic_segmentation.load(config.resolve_path(self.segmap), self._device)

    def _estimate_depth(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth float [N, H, W] in [0, 1], nearer is larger, and bool [N]: whether the map is not flat."""
        depth_maps = self._depth_estimator.depth(image_tensors.from_uint8(images)).cpu().numpy()
        return depth_maps, np.asarray(depth_maps.any((1, 2)))

    def _depth(self, images: np.ndarray) -> Annotation:
        depth_maps, not_flat = self._estimate_depth(images)
        return _to_uint8(depth_maps[..., None].repeat(3, -1)), not_flat

    def _normal(self, images: np.ndarray) -> Annotation:
        depth_maps, not_flat = self._estimate_depth(images)
        return _to_uint8(derived_maps.normals(depth_maps)), not_flat

    def _pose(self, images: np.ndarray) -> Annotation:
        joints = self._pose_estimator.estimate_joints(image_tensors.from_uint8(images))
        targets = np.stack([pose_estimation.draw_stick_figures(people, *images.shape[1:3]) for people in joints])
        return targets, np.asarray(targets.any((1, 2, 3)))

    def _segmap(self, images: np.ndarray) -> Annotation:
        labels = self._semantic_segmenter.predict_labels(image_tensors.from_uint8(images))
        return derived_maps.class_colours(labels), labels.min((1, 2)) < labels.max((1, 2))


def _run_in_batches(annotate_batch: Callable[[np.ndarray], Annotation], images: np.ndarray) -> Annotation:
    batches = [annotate_batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    targets, valid = zip(*batches, strict=True)
    return np.concatenate(targets), np.concatenate(valid)


def _apply_colour_filters(images: np.ndarray, names: Sequence[str]) -> Annotation:
    """Not valid: an unknown filter, and one that changes next to nothing, such as `saturate` of a grey image."""
    targets, valid = images.copy(), np.array([name in drawing.COLOUR_FILTERS for name in names], bool)
    for n, name in enumerate(names):
        if valid[n]:
            targets[n] = _to_uint8(drawing.apply_colour_filter(name, images[n : n + 1].astype(np.float32) / 255))[0]
            change = np.abs(targets[n].astype(np.int16) - images[n]).max(-1)
            valid[n] = np.percentile(change, 99) >= _MIN_FILTER_CHANGE
    return targets, valid


def _sketch(images: np.ndarray) -> Annotation:
    """Black edges on white."""
    darkness = derived_maps.edge_strength(images / 255)
    targets = _to_uint8((1 - darkness)[..., None].repeat(3, -1))
    return targets, np.asarray((targets < 255).any((1, 2, 3)))


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """[0, 1] -> the nearest of 0..255."""
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


annotate = Annotators(
    depth=None,
    people="PekingU/rtdetr_r50vd_coco_o365",
    pose="usyd-community/vitpose-base-simple",
    segmap="openmmlab/upernet-convnext-small",
    device="auto",
)
"""The default networks. Their weights have separate licences: read them before you use the targets."""
