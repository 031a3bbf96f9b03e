"""Similarity of embeddings, as used in edit metrics. Shapes: N items, D dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_CHANGE = 1e-4
"""Minimum length of a difference of unit vectors; float32 embeddings of equal captions differ by less. Ours."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of each pair of rows, [N, D] and [N, D] -> [N] in [-1, 1]."""
    return F.cosine_similarity(a, b, dim=-1)


def directional_similarity(image_in: Tensor, image_out: Tensor, text_in: Tensor, text_out: Tensor) -> Tensor:
    """CLIP directional similarity: cosine of the image's change and the caption's change; all [N, D] -> [N] in [-1, 1].

    From Gal et al. (StyleGAN-NADA, arXiv 2108.00946), computed on unit vectors as in InstructPix2Pix and Emu Edit.
    NaN if either change has no direction (equal captions, or an unchanged image): the value is undefined; the caller should count
    such items and exclude them from averages.
    """
    d_image = F.normalize(image_out, dim=-1) - F.normalize(image_in, dim=-1)
    d_text = F.normalize(text_out, dim=-1) - F.normalize(text_in, dim=-1)
    defined = (d_image.norm(dim=-1) > LEAST_CHANGE) & (d_text.norm(dim=-1) > LEAST_CHANGE)
    return torch.where(defined, cosine(d_image, d_text), torch.nan)
