"""Masks of edits: phrases -> detected boxes -> precise masks P -> soft masks M.

P can also come from the base model, see `methods.diffedit`.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from emuedit import config
from emuedit.core import soft_mask
from emuedit.models.detector import Detections, Detector
from emuedit.models.segmenter import Segmenter
from emuedit.synthesis.methods.diffedit import NoiseDifference
from emuedit.synthesis.rejection import Rejected

Query = tuple[int, str]
"""(index of an image, phrase to detect in it)."""


class MaskParams(config.Params):
    """Params of the soft mask M = w_p P + w_s S + w_b B, see `core.soft_mask`."""

    w_p: float = Field(0.0, ge=0)
    """Weight of the precise mask P."""
    w_s: float = Field(1.0, ge=0)
    """Weight of S: P dilated and blurred."""
    w_b: float = Field(0.0, ge=0)
    """Weight of B: the filled bounding box of P."""
    radius_px: float = Field(0.0, ge=0)
    """Radius of the dilation in S, in px."""
    sigma_px: float = Field(0.0, ge=0)
    """Standard deviation of the Gaussian blur in S, in px."""
    complement: bool = False
    """True: edit everything except the objects (the background)."""
    noise_difference: NoiseDifference | None = None
    """Compute P with the base model, see `methods.diffedit`; null: P is the union of the named objects' masks."""

    @model_validator(mode="after")
    def _check_weights(self) -> MaskParams:
        if abs(self.w_p + self.w_s + self.w_b - 1) > 1e-6:
            raise ValueError(f"w_p, w_s and w_b must sum to 1, got {self.w_p}, {self.w_s}, {self.w_b}")
        return self

    @property
    def needs_objects(self) -> bool:
        """Whether the mask needs detected objects."""
        return self.noise_difference is None

    @property
    def needs_named_objects(self) -> bool:
        """Whether an instruction must name objects; a background edit may have none."""
        return self.needs_objects and not self.complement

    def soft_mask(self, P: Tensor) -> Tensor:
        """Convert a precise mask, bool [H, W], to the soft mask, float32 [1, H, W] in [0, 1]."""
        M = soft_mask.soft_mask(soft_mask.from_uint8(P[None]), self.w_p, self.w_s, self.w_b, self.radius_px, self.sigma_px)[0]
        return 1 - M if self.complement else M


@dataclass(frozen=True)
class LocatedObject:
    """The best detection of a phrase in an image; and the others, where they are needed."""

    score: float
    box_px: Tensor  # float32 [4], x0 y0 x1 y1
    P: Tensor  # bool [H, W]
    P_all: Tensor | None = None  # bool [H, W], the union of the masks of all detections


@dataclass(frozen=True)
class DetectionLimits:
    """Limits for accepted detections and masks."""

    threshold: float  # minimum score of a detection, exclusive
    nms_iou: float  # IoU with a better box above which a box is dropped
    min_area: float  # of a mask, as a fraction of the image
    max_area: float


def split_phrases(objects: str | None) -> tuple[str, ...]:
    """Split 'red star, blue ring' into its phrases. None and '' have none."""
    return tuple(part.strip() for part in (objects or "").split(",") if part.strip())


def detect_each(
    detector: Detector, images: Tensor, queries: Sequence[Query], threshold: float, nms_iou: float | None, batch: int
) -> list[Detections]:
    """Detect the phrase of each query in its image, images [B, 3, H, W]; detections are sorted by descending score.

    Each phrase is detected separately, because the detector assigns a box only to the best-matching phrase: with both phrases in
    one query, 'star' would lose its box to 'red star'.
    """
    detections: list[Detections] = []
    for start in range(0, len(queries), batch):
        batch_queries = queries[start : start + batch]
        batch_images = images[[image for image, _ in batch_queries]]
        detections += detector.detect(batch_images, [[phrase] for _, phrase in batch_queries], threshold, nms_iou)
    return detections


def locate_objects(
    detector: Detector,
    segmenter: Segmenter,
    images: Tensor,
    queries: Sequence[Query],
    limits: DetectionLimits,
    batch: int,
    with_all: Collection[Query] = (),
) -> dict[Query, LocatedObject | None]:
    """Find the best box of every query and its mask, None if nothing is detected. Images [B, 3, H, W] in [-1, 1].

    The queries in `with_all` also get the masks of all other detections.
    """
    detections = detect_each(detector, images, queries, limits.threshold, limits.nms_iou, batch)
    detected = {query: boxes for query, boxes in zip(queries, detections, strict=True) if len(boxes)}
    boxes_px = {query: boxes.boxes_px if query in with_all else boxes.boxes_px[:1] for query, boxes in detected.items()}
    queries_of: dict[int, list[Query]] = defaultdict(list)  # index of an image -> its queries
    for query in detected:
        queries_of[query[0]].append(query)
    image_indices = sorted(queries_of)
    located: dict[Query, LocatedObject | None] = dict.fromkeys(queries)
    for start in range(0, len(image_indices), batch):
        batch_indices = image_indices[start : start + batch]
        groups = [queries_of[image] for image in batch_indices]
        group_boxes_px = [torch.cat([boxes_px[query] for query in group]) for group in groups]
        segmented = segmenter.segment(images[batch_indices], group_boxes_px)
        for group, image_masks in zip(groups, segmented, strict=True):
            n_boxes = [len(boxes_px[query]) for query in group]
            for query, P in zip(group, image_masks.masks.split(n_boxes), strict=True):
                P_all = P.any(0) if query in with_all else None
                located[query] = LocatedObject(float(detected[query].scores[0]), boxes_px[query][0], P[0], P_all)
    return located


def union_mask(
    objects: Sequence[LocatedObject | None],
    like: Tensor,
    limits: DetectionLimits,
    all_instances: bool = False,
    edits_complement: bool = False,
) -> Tensor | Rejected:
    """Union of the masks of all objects: bool [H, W] of the shape of `like`; empty without objects.

    `all_instances`: of every object all detections, in place of the best one. `edits_complement`: the rest of the image is
    edited, so the objects may be large, as in a close-up; the rest must have at least `limits.min_area`.
    Rejected if an object was not detected or the union's area is outside the limits.
    """
    P = torch.zeros_like(like, dtype=torch.bool)
    for located in objects:
        if located is None:
            return Rejected("not_detected")
        P |= located.P if not all_instances or located.P_all is None else located.P_all
    area = float(P.float().mean())
    if objects and area < limits.min_area:
        return Rejected("mask_too_small")
    max_area = 1 - limits.min_area if edits_complement else limits.max_area
    return Rejected("mask_too_large") if area > max_area else P
