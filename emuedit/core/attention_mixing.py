"""Soft-mask attention control: the outputs of two attentions mixed by a mask, and the source's queries and keys.

out = M out_target + (1 - M) out_source (ours, from Emu Edit's mask-based attention control, arXiv 2311.10089: a mask made
before editing needs no word-to-word alignment of two captions). Injected queries and keys are Plug-and-Play's way to keep
a structure (arXiv 2211.12572).

Shapes: R rows of a batch, N tokens of a layer (row by row of its grid), D their width. `source_row[r]` is the index of the
row that is the source of row r; a source points at itself.
"""

import torch
from torch import Tensor

from emuedit.core import soft_mask


def mixed(out: Tensor, source_row: Tensor, M: Tensor) -> Tensor:
    """Each row's output [R, N, D] mixed with its source's by M [R, N, 1]: M = 0 gives the source bit for bit, M = 1 the row."""
    if M.shape != (*out.shape[:2], 1):
        want = (*out.shape[:2], 1)
        raise ValueError(f"M must be {want} for outputs {tuple(out.shape)}, got {tuple(M.shape)}; call tokens first")
    return torch.lerp(out[source_row], out, M.to(out.dtype))


def injected(rows: Tensor, source_row: Tensor, active: Tensor) -> Tensor:
    """From which row [R] each row takes its queries and keys: from its source where `active` (bool [R]), else from itself."""
    return torch.where(active, source_row, rows)


def grid(n_tokens: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) of a layer with `n_tokens` tokens in a U-Net on latents of height x width that halves both, rounding up.

    Raises ValueError when no level has that many: the layer's tokens are then no places of the picture.
    """
    h, w = height, width
    levels = []
    while True:
        levels.append(f"{h}x{w}")
        if h * w == n_tokens:
            return h, w
        if h == w == 1:
            break
        h, w = -(-h // 2), -(-w // 2)
    raise ValueError(
        f"want a layer of {' or '.join(levels)} tokens, for latents of {height} x {width}, got {n_tokens}; "
        "soft masks need a network whose tokens lie on the latents' grid"
    )


def tokens(M: Tensor, height: int, width: int) -> Tensor:
    """Masks [R, 1, H, W] at the places of a layer of height x width, [R, N, 1]."""
    return soft_mask.resized(M, height, width).flatten(2).transpose(1, 2)
