"""Attention control in a U-Net of diffusers: every attention layer mixes a row's output with its source's.

Shapes: R rows of a batch, N tokens of a layer, D their width, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emuedit.core import attention_mixing
from emuedit.models.attention_processor import Processor, installed


class Control:
    """What the layers need to know of the batch that passes through them. Set it before every forward of the U-Net."""

    def __init__(self) -> None:
        self._source_row: Tensor | None = None

    def set(self, source_row: Tensor, M: Tensor, inject: Tensor, size: tuple[int, int]) -> None:
        """Rows of the coming forward: `source_row` int64 [R], `M` float [R, 1, H, W], `inject` bool [R], (h, w) of its latents.

        Where nothing is to be mixed (every M is 1 and nothing is injected) the layers do what they do without control.
        """
        if not len(source_row) == len(M) == len(inject):
            raise ValueError(f"want one source, mask and injection a row, got {len(source_row)}, {len(M)}, {len(inject)}")
        self._source_row, self._M, self._size = source_row, M, size
        rows = torch.arange(len(source_row), device=source_row.device)
        foreign = source_row != rows
        self._mixes = bool((M[foreign] < 1).any())
        self._injects = bool((inject & foreign).any())
        self._qk_row = attention_mixing.injected(rows, source_row, inject)
        self._at: dict[int, Tensor] = {}

    def qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys (and their mask) [R, ...] with injection done."""
        self._check(query)
        if not self._injects:
            return query, key, mask
        return query[self._qk_row], key[self._qk_row], None if mask is None else mask[self._qk_row]

    def mix(self, out: Tensor) -> Tensor:
        """A layer's outputs [R, N, D], mixed."""
        source_row = self._check(out)
        if not self._mixes:
            return out
        n_tokens = out.shape[1]
        if n_tokens not in self._at:
            self._at[n_tokens] = attention_mixing.tokens(self._M, *attention_mixing.grid(n_tokens, *self._size))
        return attention_mixing.mixed(out, source_row, self._at[n_tokens])

    def _check(self, rows: Tensor) -> Tensor:
        if self._source_row is None:
            raise ValueError("the U-Net runs under a Control of which nothing was set; call Control.set before every forward")
        if len(rows) != len(self._source_row):
            raise ValueError(f"the Control was set for {len(self._source_row)} rows, the forward has {len(rows)}; set it anew")
        return self._source_row


class SoftMaskProcessor(Processor):
    """Attention that mixes its outputs, and takes queries and keys, as a Control says."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """With injection done."""
        return self.control.qk(query, key, mask)

    def out(self, out: Tensor) -> Tensor:
        """Mixed."""
        return self.control.mix(out)


@contextmanager
def controlled(unet: Any) -> Iterator[Control]:
    """Put a Control into every attention layer of a U-Net, see `models.attention.installed`."""
    control = Control()
    with installed(unet, SoftMaskProcessor(control)):
        yield control
