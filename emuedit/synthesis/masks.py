"""Where an edit may happen: phrases -> boxes -> precise masks (or the base_model's own, see `difference`) -> soft masks.

Shapes: B pictures of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from emuedit import config
from emuedit.core import soft_mask
from emuedit.models.detector import Detections, Detector
from emuedit.models.segmenter import Segmenter
from emuedit.synthesis.methods.diffedit import NoiseDifference

Query = tuple[int, str]  # a picture and a phrase to look for in it


class MaskRecipe(config.Params):
    """M = w_p P + w_s S + w_b B of what was found; see `core.softmask`."""

    w_p: float = Field(ge=0)
    """Weight of the precise mask P."""
    w_s: float = Field(ge=0)
    """Weight of S: P dilated and blurred."""
    w_b: float = Field(ge=0)
    """Weight of B: the filled bounding box of P."""
    radius_px: float = Field(ge=0)
    """How far S is dilated."""
    sigma_px: float = Field(ge=0)
    """How much S is blurred."""
    complement: bool
    """True: edit all but what was found (the background)."""
    noise_difference: NoiseDifference | None
    """How P is asked of the base_model, see `synthesis.difference`; null: P is the mask of the objects that are named."""

    @model_validator(mode="after")
    def _weights(self) -> MaskRecipe:
        if abs(self.w_p + self.w_s + self.w_b - 1) > 1e-6:
            raise ValueError(f"w_p, w_s and w_b must sum to 1, got {self.w_p}, {self.w_s}, {self.w_b}")
        return self

    def soft(self, P: Tensor) -> Tensor:
        """bool [H, W] -> float32 [1, H, W] in [0, 1]."""
        M = soft_mask.soft(soft_mask.from_uint8(P[None]), self.w_p, self.w_s, self.w_b, self.radius_px, self.sigma_px)[0]
        return 1 - M if self.complement else M


@dataclass(frozen=True)
class Found:
    """The best place of a phrase in a picture."""

    score: float
    box_px: Tensor  # float32 [4], x0 y0 x1 y1
    P: Tensor  # bool [H, W]


@dataclass(frozen=True)
class Bounds:
    """What counts as found: the detector's score, and the share of the picture that a mask may cover."""

    threshold: float
    nms_iou: float
    min_area: float
    max_area: float


def phrases(objects: str | None) -> tuple[str, ...]:
    """'red star, blue ring' -> its phrases; none for None and ''."""
    return tuple(part.strip() for part in (objects or "").split(",") if part.strip())


def best(
    detector: Detector, images: Tensor, queries: Sequence[Query], threshold: float, nms_iou: float, batch: int
) -> list[Detections]:
    """What the detector finds for each phrase when it is asked for that phrase alone, best first; images [B, 3, H, W].

    Alone, because a box goes to the one phrase it fits best: 'star' would lose its box to 'red star'.
    """
    found = []
    for i in range(0, len(queries), batch):
        part = queries[i : i + batch]
        shown = images[[picture for picture, _ in part]]
        found += detector.detect(shown, [[phrase] for _, phrase in part], threshold, nms_iou)
    return found


def find(
    detector: Detector, segmenter: Segmenter, images: Tensor, queries: Sequence[Query], bounds: Bounds, batch: int
) -> dict[Query, Found | None]:
    """The best box of every query and its mask; None where the detector finds nothing. Images [B, 3, H, W] in [-1, 1]."""
    boxes = best(detector, images, queries, bounds.threshold, bounds.nms_iou, batch)
    seen = {query: one for query, one in zip(queries, boxes, strict=True) if len(one)}
    pictures = sorted({picture for picture, _ in seen})
    result: dict[Query, Found | None] = dict.fromkeys(queries)
    for i in range(0, len(pictures), batch):
        part = {picture: [query for query in seen if query[0] == picture] for picture in pictures[i : i + batch]}
        boxes_px = [torch.cat([seen[query].boxes_px[:1] for query in own]) for own in part.values()]
        some = segmenter.segment(images[list(part)], boxes_px)
        for own, segmented in zip(part.values(), some, strict=True):
            for query, P in zip(own, segmented.masks, strict=True):
                result[query] = Found(float(seen[query].scores[0]), seen[query].boxes_px[0], P)
    return result


def union(found: Sequence[Found | None], like: Tensor, bounds: Bounds) -> Tensor | str:
    """The mask of all that was found, bool [H, W] as `like`, or the reason why there is none to trust."""
    P = torch.zeros_like(like, dtype=torch.bool)
    for one in found:
        if one is None:
            return "not_detected"
        P |= one.P
    area = float(P.float().mean())
    if found and area < bounds.min_area:
        return "mask_too_small"
    return "mask_too_large" if area > bounds.max_area else P
