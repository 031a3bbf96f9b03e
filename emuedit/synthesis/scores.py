"""Every raw score of a pair: numbers that gates look at later. None where a score is undefined.

Shapes: P pictures of H x W pixels, N edits, D the width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.core import similarity
from emuedit.models.clip import ClipJudge
from emuedit.models.depth import DepthJudge
from emuedit.models.detector import Detector
from emuedit.models.dino import DinoJudge
from emuedit.synthesis import masks

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Edit:
    """One edit among P pictures. `M` float [1, H, W] or None; objects are phrases or None."""

    source: int
    target: int
    M: Tensor | None
    source_caption: str
    target_caption: str
    source_object: str | None
    target_object: str | None


@dataclass(frozen=True)
class Judges:
    """The networks that look at pairs."""

    clip: ClipJudge
    dino: DinoJudge
    depth: DepthJudge
    detector: Detector


def raw(pictures: Tensor, edits: Sequence[Edit], judges: Judges, batch: int) -> list[Scores]:
    """The scores of N edits among pictures [P, 3, H, W] in [-1, 1]; each judge sees a picture once, `batch` at a time.

    clip_source, clip_target: cosine of a picture and its caption; clip_direction: of both changes; clip_image, dino: of the
    two pictures; depth_l1: mean difference of the depth maps; l1_inside, l1_outside: mean difference in [0, 1], weighted by
    M and 1 - M; mask_area: mean of M; present_source, present_target: the detector's best score for the source's and the
    target's object in the target (of several objects the worst of the best; 0 where it finds nothing).
    """
    if not edits:
        return []
    a, b = torch.tensor([one.source for one in edits]), torch.tensor([one.target for one in edits])
    seen = _chunked(judges.clip.embed_images, pictures, batch)
    vectors = _chunked(judges.dino.embed_images, pictures, batch)
    maps = _chunked(judges.depth.depth, pictures, batch)
    captions = sorted({text for one in edits for text in (one.source_caption, one.target_caption)})
    at = {text: row for row, text in enumerate(captions)}
    said = torch.cat([judges.clip.embed_texts(captions[i : i + batch]).cpu() for i in range(0, len(captions), batch)])
    before, after = said[[at[one.source_caption] for one in edits]], said[[at[one.target_caption] for one in edits]]
    columns: dict[str, list[float | None]] = {
        "clip_source": _numbers(similarity.cosine(seen[a], before)),
        "clip_target": _numbers(similarity.cosine(seen[b], after)),
        "clip_direction": _numbers(similarity.direction(seen[a], seen[b], before, after)),
        "clip_image": _numbers(similarity.cosine(seen[a], seen[b])),
        "dino": _numbers(similarity.cosine(vectors[a], vectors[b])),
        "depth_l1": _numbers((maps[a] - maps[b]).abs().mean((1, 2))),
        "present_source": _present(pictures, edits, [one.source_object for one in edits], judges.detector, batch),
        "present_target": _present(pictures, edits, [one.target_object for one in edits], judges.detector, batch),
        "shift_px": [None] * len(edits),
    }
    masked = [_masked(pictures[one.source], pictures[one.target], one.M) for one in edits]
    columns |= {name: [one[name] for one in masked] for name in masked[0]}
    return [{name: column[n] for name, column in columns.items()} for n in range(len(edits))]


def _masked(source: Tensor, target: Tensor, M: Tensor | None) -> Scores:
    if M is None:
        return {"l1_inside": None, "l1_outside": None, "mask_area": None}
    error = (source - target).abs().mean(0) / 2  # [H, W] in [0, 1]
    inside = M[0].to(error)
    return {
        "l1_inside": _weighted(error, inside),
        "l1_outside": _weighted(error, 1 - inside),
        "mask_area": float(inside.mean()),
    }


def _weighted(error: Tensor, weight: Tensor) -> float | None:
    total = float(weight.sum())
    return float((error * weight).sum()) / total if total > 0 else None


def _present(
    pictures: Tensor, edits: Sequence[Edit], objects: Sequence[str | None], detector: Detector, batch: int
) -> list[float | None]:
    asked = [[(one.target, phrase) for phrase in masks.phrases(words)] for one, words in zip(edits, objects, strict=True)]
    queries = sorted({query for own in asked for query in own})
    score: dict[masks.Query, float] = {}
    for query, found in zip(queries, masks.best(detector, pictures, queries, 0.0, 1.0, batch), strict=True):
        score[query] = float(found.scores[0]) if len(found) else 0.0
    return [min(score[query] for query in own) if own else None for own in asked]


def _chunked(judge: Callable[[Tensor], Tensor], pictures: Tensor, batch: int) -> Tensor:
    return torch.cat([judge(pictures[i : i + batch]).cpu() for i in range(0, len(pictures), batch)])


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
