"""Similarity of an edited image to its input and to both captions, from embeddings.

Shapes: N edits, H and W pixels, D the width of an embedding.
"""

from __future__ import annotations

import math

import torch

from emuedit.core import similarity

Column = list[float | None]
"""One number per edit, None if undefined."""
BeforeAfter = tuple[torch.Tensor, torch.Tensor]
"""Embeddings [N, D] before and after the edits."""


def similarity_columns(images: BeforeAfter, texts: BeforeAfter, dino: BeforeAfter) -> dict[str, Column]:
    """Compare CLIP embeddings of images and captions, and DINO embeddings of images -> columns of N numbers.

    clip_source: cosine of image and caption before the edit. clip_target: the same after the edit (CLIPout).
    clip_direction: cosine of the image's change and the caption's change (CLIPdir), None if the captions are equal
    or the image did not change. clip_image: cosine of both images (CLIPim). dino: cosine of both images.
    """
    return {
        "clip_source": to_column(similarity.cosine(images[0], texts[0])),
        "clip_target": to_column(similarity.cosine(images[1], texts[1])),
        "clip_direction": to_column(similarity.directional_similarity(*images, *texts)),
        "clip_image": to_column(similarity.cosine(*images)),
        "dino": to_column(similarity.cosine(*dino)),
    }


def to_column(values: torch.Tensor) -> Column:
    """Convert [N] to a list of N numbers, with None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
