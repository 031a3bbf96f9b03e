"""How a picture after an edit relates to the one before and to both captions: the numbers that the field compares.

Shapes: N edits, H and W pixels, D the width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from emuedit.core import similarity
from emuedit.models.clip import ClipJudge
from emuedit.models.dino import DinoJudge


@dataclass(frozen=True)
class Likeness:
    """Of N edits, float32 [N] each, NaN where undefined."""

    clip_source: torch.Tensor  # picture before and its caption, cosine
    clip_target: torch.Tensor  # picture after and its caption, cosine: CLIPout
    clip_direction: torch.Tensor  # change of the picture and change of the caption: CLIPdir
    clip_image: torch.Tensor  # both pictures, cosine: CLIPim
    dino: torch.Tensor  # both pictures, cosine
    l1: torch.Tensor  # both pictures, mean difference in [0, 1]


def measure(
    clip: ClipJudge,
    dino: DinoJudge,
    before: torch.Tensor,
    after: torch.Tensor,
    source_captions: Sequence[str],
    target_captions: Sequence[str],
) -> Likeness:
    """Pictures [N, 3, H, W] in [-1, 1] and their captions -> the five metrics of Emu Edit (arXiv 2311.10089), and clip_source.

    The pictures are compared with the input, as there, not with a right answer. A direction is undefined where the captions
    are equal or the picture did not change: an editor that does nothing gets CLIPim 1, DINO 1, L1 0 and no CLIPdir.
    """
    if before.shape != after.shape:
        raise ValueError(f"want pictures of one shape before and after, got {tuple(before.shape)} and {tuple(after.shape)}")
    seen = clip.embed_images(torch.cat([before, after]))
    image_in, image_out = seen.chunk(2)
    text_in, text_out = clip.embed_texts([*source_captions, *target_captions]).chunk(2)
    dino_in, dino_out = dino.embed_images(torch.cat([before, after])).chunk(2)
    return Likeness(
        clip_source=similarity.cosine(image_in, text_in).cpu(),
        clip_target=similarity.cosine(image_out, text_out).cpu(),
        clip_direction=similarity.direction(image_in, image_out, text_in, text_out).cpu(),
        clip_image=similarity.cosine(image_in, image_out).cpu(),
        dino=similarity.cosine(dino_in, dino_out).cpu(),
        l1=(before - after).abs().mean((1, 2, 3)).cpu() / 2,
    )
