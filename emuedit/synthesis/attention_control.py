"""Soft-mask attention control in a diffusers U-Net: every attention layer mixes a row's output with that of its source.

The formulas are in `core.attention_mixing`.

Shapes: R batch rows, N tokens of a layer, D the layer's width, h and w the height and width of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emuedit.core import attention_mixing
from emuedit.models.attention_processor import HookedAttnProcessor, install_processor


class MaskControl:
    """Masks, sources and injection flags of the current batch. Call `set` before every forward pass of the U-Net."""

    def __init__(self) -> None:
        self._source_row: Tensor | None = None

    def set(self, source_row: Tensor, M: Tensor, inject: Tensor, size: tuple[int, int]) -> None:
        """Describe the R rows of the next forward pass.

        `source_row` int64 [R] is the row of each row's source; a source points at itself. `M` float [R, 1, H, W] is 1
        where a row keeps its own output. `inject` bool [R]: whether self-attention takes queries and keys from the
        source. `size` is the (h, w) of the latents. Where every M is 1 and nothing is injected, the layers compute
        exactly what they compute without control. Raises ValueError for arguments of unequal length.
        """
        if not len(source_row) == len(M) == len(inject):
            raise ValueError(
                f"want one source, one mask and one injection flag per row, got {len(source_row)}, {len(M)}, {len(inject)}"
            )
        self._source_row, self._M, self._size = source_row, M, size
        rows = torch.arange(len(source_row), device=source_row.device)
        has_source = source_row != rows
        self._mixes = bool((M[has_source] < 1).any())
        self._injects = bool((inject & has_source).any())
        self._qk_row = attention_mixing.injection_rows(rows, source_row, inject)
        self._token_masks: dict[int, Tensor] = {}  # number of tokens of a layer -> M [R, N, 1]

    def inject_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Replace queries, keys and their mask [R, ...] of injected rows by those of their sources."""
        self._check_rows(query)
        if not self._injects:
            return query, key, mask
        return query[self._qk_row], key[self._qk_row], None if mask is None else mask[self._qk_row]

    def mix(self, out: Tensor) -> Tensor:
        """Mix a layer's outputs [R, N, D] with those of their sources by M."""
        source_row = self._check_rows(out)
        if not self._mixes:
            return out
        n_tokens = out.shape[1]
        if n_tokens not in self._token_masks:
            grid = attention_mixing.layer_grid(n_tokens, *self._size)
            self._token_masks[n_tokens] = attention_mixing.mask_to_tokens(self._M, *grid)
        return attention_mixing.mix_outputs(out, source_row, self._token_masks[n_tokens])

    def _check_rows(self, rows: Tensor) -> Tensor:
        """Return `source_row`. Raise ValueError where `set` was not called, or called for another number of rows."""
        if self._source_row is None:
            raise ValueError("the U-Net runs with a MaskControl that is not set; call MaskControl.set before every forward pass")
        if len(rows) != len(self._source_row):
            raise ValueError(
                f"the MaskControl was set for {len(self._source_row)} rows, the forward pass has {len(rows)}; set it again"
            )
        return self._source_row


class SoftMaskProcessor(HookedAttnProcessor):
    """Attention that injects queries and keys and mixes outputs as a MaskControl describes."""

    def __init__(self, control: MaskControl) -> None:
        self.control = control

    def process_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inject the queries and keys of the sources."""
        return self.control.inject_qk(query, key, mask)

    def process_output(self, out: Tensor) -> Tensor:
        """Mix the outputs with those of the sources."""
        return self.control.mix(out)


@contextmanager
def mask_control(unet: Any) -> Iterator[MaskControl]:
    """Control every attention layer of a U-Net inside the `with` block, see `attention_processor.install_processor`."""
    control = MaskControl()
    with install_processor(unet, SoftMaskProcessor(control)):
        yield control
