"""Every raw score of a pair: numbers that gates look at later. None where a score is undefined.

Shapes: P pictures of H x W pixels, N edits, D the width of an embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.core.registration import shift
from emuedit.models import edit_similarity
from emuedit.models.clip import ClipScorer
from emuedit.models.depth import DepthEstimator
from emuedit.models.detector import Detector
from emuedit.models.dino import DinoScorer
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
    vacant: int | None = None
    """The picture in which nothing should stand inside of M: after removing, before adding."""


@dataclass(frozen=True)
class Scorers:
    """The networks that look at pairs."""

    clip: ClipScorer
    dino: DinoScorer
    depth: DepthEstimator
    detector: Detector


def raw(pictures: Tensor, edits: Sequence[Edit], judges: Scorers, batch: int) -> list[Scores]:
    """The scores of N edits among pictures [P, 3, H, W] in [-1, 1]; each judge sees a picture once, `batch` at a time.

    Those of `edit_similarity.compared`; depth_l1: mean difference of the depth maps; l1_inside, l1_outside: mean difference in
    [0, 1], weighted by M and 1 - M; mask_area: mean of M; present_source, present_target: the detector's best score for the
    source's and the target's object in the target (of several objects the worst of the best; 0 where it finds nothing);
    found_source: the same for the source's object in the source, which is what an instruction speaks of; left_inside: its best
    score for anything that either caption names, among boxes of the vacant picture that have their centre in M;
    shift_px: how far the target lies from the source, weighted by 1 - M, see `core.registration`.
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
    texts = said[[at[one.source_caption] for one in edits]], said[[at[one.target_caption] for one in edits]]
    columns = edit_similarity.compared((seen[a], seen[b]), texts, (vectors[a], vectors[b]))
    columns |= {
        "depth_l1": edit_similarity.column((maps[a] - maps[b]).abs().mean((1, 2))),
        "present_source": _present(pictures, [(one.target, one.source_object) for one in edits], judges.detector, batch),
        "present_target": _present(pictures, [(one.target, one.target_object) for one in edits], judges.detector, batch),
        "found_source": _present(pictures, [(one.source, one.source_object) for one in edits], judges.detector, batch),
        "left_inside": left_inside(pictures, edits, judges.detector, batch),
        "shift_px": [_shifted(pictures[one.source], pictures[one.target], one.M) for one in edits],
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


def _shifted(source: Tensor, target: Tensor, M: Tensor | None) -> float | None:
    d = None if M is None else shift(source, target, 1 - M[0].to(source))
    return None if d is None else math.hypot(*d)


def _weighted(error: Tensor, weight: Tensor) -> float | None:
    total = float(weight.sum())
    return float((error * weight).sum()) / total if total > 0 else None


def _present(
    pictures: Tensor, wanted: Sequence[tuple[int, str | None]], detector: Detector, batch: int
) -> edit_similarity.Column:
    """Of pictures and the objects looked for there."""
    asked = [[(picture, phrase) for phrase in masks.phrases(words)] for picture, words in wanted]
    queries = sorted({query for own in asked for query in own})
    score: dict[masks.Query, float] = {}
    for query, found in zip(queries, masks.best(detector, pictures, queries, 0.0, 1.0, batch), strict=True):
        score[query] = float(found.scores[0]) if len(found) else 0.0
    return [min(score[query] for query in own) if own else None for own in asked]


def left_inside(pictures: Tensor, edits: Sequence[Edit], detector: Detector, batch: int) -> edit_similarity.Column:
    """The score of that name, for N edits among pictures [P, 3, H, W]; see `raw`."""
    column: edit_similarity.Column = [None] * len(edits)
    asked = [(n, one.vacant, one.M) for n, one in enumerate(edits) if one.vacant is not None and one.M is not None]
    for i in range(0, len(asked), batch):
        part = asked[i : i + batch]
        said = [named(f"{edits[n].source_caption}, {edits[n].target_caption}") for n, *_ in part]
        found = detector.detect(pictures[[row for _, row, _ in part]], said, 0.0, 1.0)
        for (n, _, M), one in zip(part, found, strict=True):
            inside = _at_centres(M[0], one.boxes_px) > 0.5
            column[n] = float(one.scores[inside].max()) if inside.any() else 0.0
    return column


def _at_centres(M: Tensor, boxes_px: Tensor) -> Tensor:
    """M [H, W] at the centres of K boxes, [K]."""
    x, y = ((boxes_px[:, k] + boxes_px[:, k + 2]) / 2 for k in (0, 1))
    return M[y.long().clamp(0, M.shape[0] - 1), x.long().clamp(0, M.shape[1] - 1)]


_JOINTS = re.compile(r"[,.;:]|\b(?:and|with|on|in|at|of|to|by|over|under|behind|beside|near|against|from)\b")


def named(caption: str) -> list[str]:
    """What a caption may name, roughly: its pieces between commas, `and` and prepositions, each once. Also pieces that name no
    thing; a detector finds nothing for them.
    """
    return list(dict.fromkeys(piece for part in _JOINTS.split(caption) if (piece := part.strip())))


def _chunked(judge: Callable[[Tensor], Tensor], pictures: Tensor, batch: int) -> Tensor:
    return torch.cat([judge(pictures[i : i + batch]).cpu() for i in range(0, len(pictures), batch)])
