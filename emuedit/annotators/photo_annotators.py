"""The annotators of photographs: `world.annotators: emuedit/annotators/photo_annotators.py`.

For other networks write a file of your own, in a folder of its own, and name that:

    from emuedit.annotators.photo_annotators import Annotators

    annotate = Annotators(depth="Intel/dpt-large", people=..., pose=..., segmap=..., device="auto")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emuedit import config
from emuedit.annotators import derived_maps, drawing, semantic_segmentation
from emuedit.annotators import pose_estimation as people
from emuedit.annotators.pose_estimation import People
from emuedit.models import depth as depths
from emuedit.models import image_tensors
from emuedit.runtime import Runtime

BOX_RGB, MASK_RGB = np.array([(255, 0, 255), (0, 255, 255)], np.uint8)
BATCH = 8
"""Pictures that go through a network together."""


@dataclass(frozen=True)
class Annotators:
    """Calls like a function. Networks are folders, from where the program runs, or hub ids, loaded when first needed."""

    depth: str  # relative depth, for the tasks `depth` and `normal`; that of `world.depth` will do
    people: str  # object detector with the class "person", for `pose`
    pose: str  # ViTPose, for `pose`
    segmap: str  # semantic segmentation, for `segmap`
    device: str  # auto, cpu, cuda or mps

    def __call__(
        self, task: str, images: np.ndarray, words: Sequence[str], boxes_px: np.ndarray, masks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The targets uint8 [N, H, W, 3] of a vision task for pictures of that shape, and bool [N]: could it be drawn?

        `words` names the filter (color), `boxes_px` [N, 4] (x0 y0 x1 y1) the object (detect), `masks` bool [N, H, W] its pixels
        (segment); each matters to its task alone. A target that tells nothing is refused: an empty box or mask, a box that fills
        the picture, an unknown filter, flat depth, no edge, nobody, one class only. Raises ValueError for another task.
        """
        height, width = images.shape[1:3]
        if task == "detect":
            line = drawing.frame(boxes_px, height, width, max(2, round(max(height, width) / 128)))
            return np.where(line[..., None], BOX_RGB, images), np.asarray(line.any((1, 2)))
        if task == "segment":
            return np.where(masks[..., None], MASK_RGB, images), np.asarray(masks.any((1, 2)))
        if task == "color":
            return _coloured(images, words)
        draw = {"depth": self._depth, "normal": self._normal, "sketch": _sketch, "pose": self._pose, "segmap": self._segmap}
        if task not in draw:
            raise ValueError(f"want detect, segment, color, {', '.join(draw)}; got {task!r}")
        return _in_batches(draw[task], images)

    @cached_property
    def _device(self) -> str:
        return Runtime.choose(self.device).device

    @cached_property
    def _depths(self) -> depths.DepthEstimator:
        return depths.load(config.resolve_path(self.depth), self._device)

    @cached_property
    def _people(self) -> People:
        return people.load(config.resolve_path(self.people), config.resolve_path(self.pose), self._device)

    @cached_property
    def _classes(self) -> semantic_segmentation.Classes:
        return semantic_segmentation.load(config.resolve_path(self.segmap), self._device)

    def _relief(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float [N, H, W] in [0, 1], nearer is larger, and whether there is any."""
        found = self._depths.depth(image_tensors.from_uint8(images)).cpu().numpy()
        return found, np.asarray(found.any((1, 2)))

    def _depth(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near, told = self._relief(images)
        return _bytes(near[..., None].repeat(3, -1)), told

    def _normal(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near, told = self._relief(images)
        return _bytes(derived_maps.normals(near)), told

    def _pose(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        joints = self._people.joints(image_tensors.from_uint8(images))
        drawn = np.stack([people.stick_figures(one, *images.shape[1:3]) for one in joints])
        return drawn, np.asarray(drawn.any((1, 2, 3)))

    def _segmap(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = self._classes.labels(image_tensors.from_uint8(images))
        return derived_maps.class_colours(labels), labels.min((1, 2)) < labels.max((1, 2))


Draw = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _in_batches(draw: Draw, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drawn, told = zip(*(draw(images[i : i + BATCH]) for i in range(0, len(images), BATCH)), strict=True)
    return np.concatenate(drawn), np.concatenate(told)


def _coloured(images: np.ndarray, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    out, known = images.copy(), np.array([word in drawing.FILTERS for word in words], bool)
    for n, word in enumerate(words):
        if known[n]:
            out[n] = _bytes(drawing.filtered(word, images[n : n + 1].astype(np.float32) / 255))[0]
    return out, known


def _sketch(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Black lines on white."""
    ink = derived_maps.ink(images / 255)
    drawn = _bytes((1 - ink)[..., None].repeat(3, -1))
    return drawn, np.asarray((drawn < 255).any((1, 2, 3)))


def _bytes(picture: np.ndarray) -> np.ndarray:
    """[0, 1] to the nearest of 0..255."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


annotate = Annotators(
    depth="depth-anything/Depth-Anything-V2-Small-hf",
    people="PekingU/rtdetr_r50vd_coco_o365",
    pose="usyd-community/vitpose-base-simple",
    segmap="openmmlab/upernet-convnext-small",
    device="auto",
)
"""Their weights are their makers': read the licences before you use what is drawn."""
