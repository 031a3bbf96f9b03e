"""Likeness of embeddings, as the field measures edits. Shapes: N items, D dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_CHANGE = 1e-4
"""A change of unit vectors shorter than this has no direction (ours: float32 embeddings of equal captions differ by less)."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair, [N, D] and [N, D] -> [N] in [-1, 1]."""
    return F.cosine_similarity(a, b, dim=-1)


def direction(image_in: Tensor, image_out: Tensor, text_in: Tensor, text_out: Tensor) -> Tensor:
    """CLIP directional similarity: cosine of the change of the image and the change of the caption; all [N, D] -> [N].

    Gal et al. (StyleGAN-NADA, arXiv 2108.00946), as InstructPix2Pix and Emu Edit use it, on unit vectors. NaN where either
    change has no direction (equal captions, an untouched picture): undefined, to be counted and not to be averaged in.
    """
    d_image = F.normalize(image_out, dim=-1) - F.normalize(image_in, dim=-1)
    d_text = F.normalize(text_out, dim=-1) - F.normalize(text_in, dim=-1)
    defined = (d_image.norm(dim=-1) > LEAST_CHANGE) & (d_text.norm(dim=-1) > LEAST_CHANGE)
    return torch.where(defined, cosine(d_image, d_text), torch.nan)
