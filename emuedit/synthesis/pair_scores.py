"""Raw scores of pairs, which the filters use later. Undefined scores are None.

Shapes: P images of H x W pixels, N edits, D the width of an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.ndimage import find_objects, label
from torch import Tensor

from emuedit.core.registration import estimate_shift
from emuedit.data.records import finite_or_none
from emuedit.models import edit_similarity, model_sources
from emuedit.models.clip import ClipScorer
from emuedit.models.depth import DepthEstimator
from emuedit.models.detector import Detector
from emuedit.models.dino import DinoScorer
from emuedit.synthesis import masks

Scores = dict[str, float | None]
_SHIFT_PX = 256
_SCENERY_SHARE = 0.9


@dataclass(frozen=True)
class ScoredEdit:
    """An edit between two of P images. `source`, `target` and `vacant` are image indices."""

    source: int
    target: int
    M: Tensor | None  # float [1, H, W], the soft mask of the edit
    source_caption: str
    target_caption: str
    source_object: str | None  # phrases, separated by commas
    target_object: str | None
    vacant: int | None = None
    """The image that should contain no object inside M: the target of a removal, the source of an addition."""


@dataclass(frozen=True)
class Scorers:
    """The networks that score pairs."""

    clip: ClipScorer
    dino: DinoScorer
    depth: DepthEstimator
    detector: Detector


def score_pairs(images: Tensor, edits: Sequence[ScoredEdit], scorers: Scorers, batch: int) -> list[Scores]:
    """Score N edits between images [P, 3, H, W] in [-1, 1].

    CLIP, DINO and the depth network process every image once, in batches of `batch`.

    The scores of an edit are the columns of `edit_similarity.similarity_columns`, and:
    depth_l1: mean absolute difference of the depth maps.
    l1_inside, l1_outside: mean absolute difference of the images in [0, 1], weighted by M and by 1 - M.
    mask_area: mean of M.
    source_object_after, target_object_after: the detector's best score in the target image for the source's and for the target's
        object; 0 if nothing is detected, the lowest of the best scores for several objects.
    source_object_before: like source_object_after, in the source image.
    object_left_in_mask: see `object_left_in_mask`.
    shift_px: length of the shift between source and target, weighted by 1 - M, see `core.registration`.
    """
    if not edits:
        return []
    sources, targets = torch.tensor([edit.source for edit in edits]), torch.tensor([edit.target for edit in edits])
    clip_images = _embed_in_batches(scorers.clip.embed_images, images, batch)
    dino_images = _embed_in_batches(scorers.dino.embed_images, images, batch)
    depth_maps = _embed_in_batches(scorers.depth.depth, images, batch)
    columns = edit_similarity.similarity_columns(
        (clip_images[sources], clip_images[targets]),
        _embed_captions(edits, scorers.clip, batch),
        (dino_images[sources], dino_images[targets]),
    )
    source_objects_in_target = [(edit.target, edit.source_object) for edit in edits]
    target_objects_in_target = [(edit.target, edit.target_object) for edit in edits]
    source_objects_in_source = [(edit.source, edit.source_object) for edit in edits]
    columns |= {
        "depth_l1": edit_similarity.to_column((depth_maps[sources] - depth_maps[targets]).abs().mean((1, 2))),
        "source_object_after": _presence(images, source_objects_in_target, scorers.detector, batch),
        "target_object_after": _presence(images, target_objects_in_target, scorers.detector, batch),
        "source_object_before": _presence(images, source_objects_in_source, scorers.detector, batch),
        "object_left_in_mask": object_left_in_mask(images, edits, scorers.detector, batch),
        "shift_px": [_shift_px(images[edit.source], images[edit.target], edit.M) for edit in edits],
    }
    mask_scores = [_mask_scores(images[edit.source], images[edit.target], edit.M) for edit in edits]
    columns |= {name: [scores[name] for scores in mask_scores] for name in mask_scores[0]}
    return [{name: finite_or_none(column[n]) for name, column in columns.items()} for n in range(len(edits))]


def object_left_in_mask(images: Tensor, edits: Sequence[ScoredEdit], detector: Detector, batch: int) -> edit_similarity.Column:
    """The score `object_left_in_mask` of N edits between images [P, 3, H, W]: remaining objects where there should be none.

    It is the best score in the vacant image over all phrases of both captions, among boxes at the place of the edit, see
    `_are_in_mask`; 0 if there is none. None for edits without a vacant image or without a mask.
    """
    column: edit_similarity.Column = [None] * len(edits)
    checks = [(n, edit.vacant, edit.M) for n, edit in enumerate(edits) if edit.vacant is not None and edit.M is not None]
    for start in range(0, len(checks), batch):
        batch_checks = checks[start : start + batch]
        batch_images = images[[image for _, image, _ in batch_checks]]
        phrases = [caption_phrases(f"{edits[n].source_caption}, {edits[n].target_caption}") for n, *_ in batch_checks]
        detections = detector.detect(batch_images, phrases, 0.0)
        for (n, _, M), boxes in zip(batch_checks, detections, strict=True):
            inside = _are_in_mask(M[0] > 0.5, boxes.boxes_px)
            column[n] = float(boxes.scores[inside].max()) if inside.any() else 0.0
    return column


_SEPARATORS = re.compile(r"[,.;:]|\b(?:and|with|on|in|at|of|to|by|over|under|behind|beside|near|against|from)\b")


def caption_phrases(caption: str) -> list[str]:
    """Split a caption at punctuation, `and` and prepositions into distinct candidate phrases for objects.

    Some phrases name no object, or scenery such as "a mountain lake", whose box is larger than the edited region.
    """
    return list(dict.fromkeys(phrase for part in _SEPARATORS.split(caption) if (phrase := part.strip())))


def _embed_in_batches(embed: Callable[[Tensor], Tensor], images: Tensor, batch: int) -> Tensor:
    return torch.cat([embed(images[start : start + batch]).cpu() for start in range(0, len(images), batch)])


def _embed_captions(edits: Sequence[ScoredEdit], clip: ClipScorer, batch: int) -> tuple[Tensor, Tensor]:
    """CLIP embeddings [N, D] of source captions and of target captions. Each distinct caption is embedded once."""
    captions = sorted({caption for edit in edits for caption in (edit.source_caption, edit.target_caption)})
    row = {caption: n for n, caption in enumerate(captions)}
    starts = range(0, len(captions), batch)
    embeddings = torch.cat([clip.embed_texts(captions[start : start + batch]).cpu() for start in starts])
    return embeddings[[row[edit.source_caption] for edit in edits]], embeddings[[row[edit.target_caption] for edit in edits]]


def _presence(
    images: Tensor, objects: Sequence[tuple[int, str | None]], detector: Detector, batch: int
) -> edit_similarity.Column:
    """For each (image index, phrases): the lowest of the phrases' best scores, or None without phrases."""
    queries_of = [[(image, phrase) for phrase in masks.split_phrases(phrases)] for image, phrases in objects]
    queries = sorted({query for item_queries in queries_of for query in item_queries})
    best_score: dict[masks.Query, float] = {}
    for query, boxes in zip(queries, masks.detect_each(detector, images, queries, 0.0, None, batch), strict=True):
        best_score[query] = float(boxes.scores[0]) if len(boxes) else 0.0
    return [min(best_score[query] for query in item_queries) if item_queries else None for item_queries in queries_of]


def _mask_scores(source: Tensor, target: Tensor, M: Tensor | None) -> Scores:
    if M is None:
        return {"l1_inside": None, "l1_outside": None, "mask_area": None}
    difference = (source - target).abs().mean(0) / 2  # [H, W] in [0, 1]
    inside = M[0].to(difference)
    return {
        "l1_inside": _weighted_mean(difference, inside),
        "l1_outside": _weighted_mean(difference, 1 - inside),
        "mask_area": float(inside.mean()),
    }


def _shift_px(source: Tensor, target: Tensor, M: Tensor | None) -> float | None:
    """Shift in px of the images, estimated at no more than `_SHIFT_PX` px per side: 1024 px takes seconds per pair."""
    if M is None:
        return None
    weight = 1 - M[0].to(source)
    scale = max(1.0, max(source.shape[1:]) / _SHIFT_PX)
    if scale > 1:
        source, target, weight = (_shrink(plane, scale) for plane in (source, target, weight[None]))
        weight = weight[0]
    shift = estimate_shift(source, target, weight)
    return None if shift is None else scale * math.hypot(*shift)


def _shrink(image: Tensor, scale: float) -> Tensor:
    """[C, H, W] -> [C, H / scale, W / scale], by averaging."""
    size = [round(side / scale) for side in image.shape[1:]]
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]


def _weighted_mean(values: Tensor, weight: Tensor) -> float | None:
    total = float(weight.sum())
    return float((values * weight).sum()) / total if total > 0 else None


def _are_in_mask(mask: Tensor, boxes_px: Tensor) -> Tensor:
    """Which of K boxes are those of objects in a mask bool [H, W]; bool [K].

    At least half of the box's area is in the mask, or its IoU with the bounding box of the mask, or of a connected part of it, is
    at least 0.5: a leaning ladder fills a third of its box. Only the first rule applies to boxes of more than 0.9 of the image,
    which are those of scenery. The rules and their bounds are ours.
    """
    iou = model_sources.import_library("torchvision.ops").box_iou(boxes_px, _bounding_boxes(mask))  # [K, R]
    is_scenery = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1) > _SCENERY_SHARE * mask.numel()
    return (_share_inside(mask, boxes_px) >= 0.5) | (iou >= 0.5).any(1) & ~is_scenery


def _bounding_boxes(mask: Tensor) -> Tensor:
    """The bounding boxes of a mask bool [H, W] and of its connected parts: float32 [R, 4], none for an empty mask."""
    pixels = mask.cpu().numpy()
    parts, _ = label(pixels, structure=[[1] * 3] * 3)
    slices = [*find_objects(pixels.astype(int)), *find_objects(parts)]
    return torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in slices], dtype=torch.float32).view(len(slices), 4)


def _share_inside(mask: Tensor, boxes_px: Tensor) -> Tensor:
    """Fraction of each of K boxes inside a mask bool [H, W], counted in full pixels; [K] in [0, 1]."""
    height, width = mask.shape
    table = F.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # [y, x]: pixels of the mask above y and left of x
    x0, y0 = (boxes_px[:, k].floor().long().clamp(0, size - 1) for k, size in ((0, width), (1, height)))
    x1, y1 = (boxes_px[:, k].ceil().long().clamp(1, size) for k, size in ((2, width), (3, height)))
    count = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return count / ((x1 - x0) * (y1 - y0))
