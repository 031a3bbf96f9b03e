"""Similarity of an edited image to its input image and to both captions: the metrics that the field reports.

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
"""One number per edit, None where it is undefined."""
BeforeAfter = tuple[torch.Tensor, torch.Tensor]
"""Embeddings [N, D] before and after the edits."""


def similarity_columns(images: BeforeAfter, texts: BeforeAfter, dino: BeforeAfter) -> dict[str, Column]:
    """Compare CLIP embeddings of images and captions, and DINO embeddings of images -> columns of N numbers.

    clip_source: cosine of image and caption before the edit. clip_target: the same after the edit (CLIPout).
    clip_direction: cosine of the image's change and the caption's change (CLIPdir), None where the captions are equal
    or the image did not change. clip_image: cosine of both images (CLIPim). dino: cosine of both images.
    """
    return {
        "clip_source": to_column(similarity.cosine(images[0], texts[0])),
        "clip_target": to_column(similarity.cosine(images[1], texts[1])),
        "clip_direction": to_column(similarity.directional_similarity(*images, *texts)),
        "clip_image": to_column(similarity.cosine(*images)),
        "dino": to_column(similarity.cosine(*dino)),
    }


def measure_edits(
    clip: ClipScorer,
    dino: DinoScorer,
    before: torch.Tensor,
    after: torch.Tensor,
    source_captions: Sequence[str],
    target_captions: Sequence[str],
) -> dict[str, Column]:
    """Measure the five metrics of Emu Edit (arXiv 2311.10089) and clip_source, for images [N, 3, H, W] in [-1, 1].

    The columns are those of `similarity_columns`, and l1: the mean absolute difference of both images in [0, 1]. As in
    the paper, an edited image is compared with its input image and not with a reference: an editor that does nothing
    gets CLIPim 1, DINO 1, L1 0 and no CLIPdir. Raises ValueError for images of different shapes.
    """
    if before.shape != after.shape:
        raise ValueError(f"want images of one shape before and after, got {tuple(before.shape)} and {tuple(after.shape)}")
    n = len(before)
    images, captions = torch.cat([before, after]), [*source_captions, *target_captions]
    clip_images, clip_texts = clip.embed_images(images), clip.embed_texts(captions)
    dino_images = dino.embed_images(images)
    columns = similarity_columns(
        (clip_images[:n], clip_images[n:]), (clip_texts[:n], clip_texts[n:]), (dino_images[:n], dino_images[n:])
    )
    return columns | {"l1": to_column((before - after).abs().mean((1, 2, 3)) / 2)}


def to_column(values: torch.Tensor) -> Column:
    """Convert [N] to a list of N numbers, with None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
