"""How a picture after an edit relates to the one before and to both captions: the numbers that the field compares.

Shapes: N edits, H and W pixels, D the width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from emuedit.core import similarity
from emuedit.models.clip import ClipScorer
from emuedit.models.dino import DinoScorer

Column = list[float | None]
"""One number an edit, None where it is undefined."""
Sides = tuple[torch.Tensor, torch.Tensor]
"""Embeddings [N, D] before and after the edits."""


def compared(images: Sides, texts: Sides, dino: Sides) -> dict[str, Column]:
    """CLIP's embeddings of N pictures and captions before and after, and DINO's of the pictures -> columns of N numbers.

    clip_source: cosine of picture and caption before; clip_target: after (CLIPout); clip_direction: of the change of the
    picture and the change of the caption (CLIPdir), undefined where the captions are equal or the picture did not change;
    clip_image: of both pictures (CLIPim); dino: of both pictures.
    """
    return {
        "clip_source": column(similarity.cosine(images[0], texts[0])),
        "clip_target": column(similarity.cosine(images[1], texts[1])),
        "clip_direction": column(similarity.direction(*images, *texts)),
        "clip_image": column(similarity.cosine(*images)),
        "dino": column(similarity.cosine(*dino)),
    }


def measure(
    clip: ClipScorer,
    dino: DinoScorer,
    before: torch.Tensor,
    after: torch.Tensor,
    source_captions: Sequence[str],
    target_captions: Sequence[str],
) -> dict[str, Column]:
    """Pictures [N, 3, H, W] in [-1, 1] and their captions -> the five metrics of Emu Edit (arXiv 2311.10089), and clip_source.

    Those of `compared`, and l1: mean difference of both pictures in [0, 1]. The pictures are compared with the input, as
    there, not with a right answer: an editor that does nothing gets CLIPim 1, DINO 1, L1 0 and no CLIPdir.
    """
    if before.shape != after.shape:
        raise ValueError(f"want pictures of one shape before and after, got {tuple(before.shape)} and {tuple(after.shape)}")
    n = len(before)
    both, captions = torch.cat([before, after]), [*source_captions, *target_captions]
    seen, said, vectors = clip.embed_images(both), clip.embed_texts(captions), dino.embed_images(both)
    l1 = column((before - after).abs().mean((1, 2, 3)) / 2)
    return compared((seen[:n], seen[n:]), (said[:n], said[n:]), (vectors[:n], vectors[n:])) | {"l1": l1}


def column(values: torch.Tensor) -> Column:
    """[N] -> N numbers, None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
