"""Soft-mask attention control: mix the attention outputs of an edit and of its source, and share queries and keys.

out = M out_target + (1 - M) out_source. The formula is ours; it follows Emu Edit's mask-based attention control
(arXiv 2311.10089): a mask computed before the edit needs no word alignment of the two captions.
Taking queries and keys from the source preserves its structure, as in Plug-and-Play (arXiv 2211.12572).

Shapes: R batch rows, N tokens of a layer (row by row of its grid), D the layer's width.
`source_row[r]` is the batch row of the source of row r; a source points at itself.
"""

import torch
from torch import Tensor

from emuedit.core import soft_mask


def mix_outputs(out: Tensor, out_source: Tensor, M: Tensor) -> Tensor:
    """Mix each row's output with the output of its source, both [R, N, D], by M [R, N, 1].

    M = 0 gives exactly the source's output, M = 1 exactly the row's. Raises ValueError for an M of another shape.
    """
    expected = (*out.shape[:2], 1)
    if M.shape != expected:
        raise ValueError(f"M must be {expected} for outputs {tuple(out.shape)}, got {tuple(M.shape)}; call mask_to_tokens first")
    return torch.lerp(out_source, out, M.to(out.dtype))


def injection_rows(rows: Tensor, source_row: Tensor, active: Tensor) -> Tensor:
    """Index [R] of the row whose queries and keys each row uses: its source if `active` (bool [R]), else itself."""
    return torch.where(active, source_row, rows)


def layer_grid(n_tokens: int, height: int, width: int) -> tuple[int, int]:
    """Grid (h, w) of a layer with `n_tokens` tokens, in a U-Net on latents of height x width.

    Each level of the U-Net halves both sides and rounds up. Raises ValueError if no level has this many tokens: the layer's
    tokens then do not correspond to image positions.
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
        "soft masks need a network whose tokens are on the grid of the latents"
    )


def mask_to_tokens(M: Tensor, height: int, width: int) -> Tensor:
    """Resize masks [R, 1, H, W] to the grid of a layer, height x width, and flatten them to [R, N, 1]."""
    return soft_mask.resize(M, height, width).flatten(2).transpose(1, 2)
