"""Soft-mask attention control in a diffusers U-Net: every attention layer mixes a row's output with that of its source.

The formulas are in `core.attention_mixing`.

Shapes: R batch rows, N tokens of a layer, D the layer's width, h and w the height and width of the latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emuedit.core import attention_mixing
from emuedit.models.attention_processor import HookedAttnProcessor
from emuedit.synthesis.attention_features import AttentionFeatures


class MaskControl(HookedAttnProcessor):
    """Attention that injects queries and keys and mixes outputs, by the masks, sources and injection flags of the current batch.

    Call `set`, or `set_recorded` for sources whose attention was recorded, before every forward pass of the U-Net.
    """

    def __init__(self) -> None:
        self._n_rows: int | None = None
        self._features: AttentionFeatures | None = None

    def set(self, source_row: Tensor, M: Tensor, inject: Tensor, size: tuple[int, int]) -> None:
        """Describe the R rows of the next forward pass, sources among them.

        `source_row` int64 [R]: row of each row's source; a source points at itself. `M` float [R, 1, H, W]: weight of a row's own
        output. `inject` bool [R]: whether self-attention uses the source's queries and keys. `size`: (h, w) of the latents. If
        all M are 1 and nothing is injected, the layers compute exactly what they compute without control. Raises ValueError for
        arguments of unequal length.
        """
        rows = torch.arange(len(source_row), device=source_row.device)
        self._set(source_row, M, inject, size, has_source=source_row != rows)
        self._features = None
        self._qk_row = attention_mixing.injection_rows(rows, source_row, inject)

    def set_recorded(
        self, features: AttentionFeatures, source_of: Tensor, M: Tensor, inject: Tensor, size: tuple[int, int], n_terms: int
    ) -> None:
        """Describe the next forward pass of only K variants, with recorded attention of their sources.

        `source_of` int64 [K]: index of each variant's source in `features`; M [K, 1, H, W], `inject` [K] and
        `size` are as for `set`. `n_terms`: terms of guidance in the pass, which has K rows for each; 1 is only the text. Raises
        ValueError for features with fewer terms, and as `set`.
        """
        if features.n_terms < n_terms:
            raise ValueError(f"want the sources' attention for {n_terms} terms of guidance, got {features.n_terms}")
        has_source = torch.ones(len(source_of) * n_terms, dtype=torch.bool, device=source_of.device)
        self._set(source_of.repeat(n_terms), M.repeat(n_terms, 1, 1, 1), inject.repeat(n_terms), size, has_source)
        self._features, self._source_of, self._n_terms = features, source_of, n_terms

    def _set(self, source_row: Tensor, M: Tensor, inject: Tensor, size: tuple[int, int], has_source: Tensor) -> None:
        if not len(source_row) == len(M) == len(inject):
            raise ValueError(
                f"want one source, one mask and one injection flag per row, got {len(source_row)}, {len(M)}, {len(inject)}"
            )
        self._n_rows, self._source_row, self._M, self._inject, self._size = len(source_row), source_row, M, inject, size
        self._mixes = bool((M[has_source] < 1).any())
        self._injects = bool((inject & has_source).any())
        self._token_masks: dict[int, Tensor] = {}  # number of tokens of a layer -> M [R, N, 1]
        self._self_layer = self._layer = 0  # self-attentions and attentions done in this forward pass

    def process_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Replace queries, keys and their mask [R, ...] of injected rows by those of their sources."""
        self._check_rows(query)
        layer, self._self_layer = self._self_layer, self._self_layer + 1
        if not self._injects:
            return query, key, mask
        if self._features is None:
            return query[self._qk_row], key[self._qk_row], None if mask is None else mask[self._qk_row]
        inject = self._inject.view(-1, 1, 1, 1)
        query = torch.where(inject, self._recorded(self._features.queries[layer]), query)
        return query, torch.where(inject, self._recorded(self._features.keys[layer]), key), mask

    def process_output(self, out: Tensor) -> Tensor:
        """Mix a layer's outputs [R, N, D] with those of their sources by M."""
        self._check_rows(out)
        layer, self._layer = self._layer, self._layer + 1
        if not self._mixes:
            return out
        n_tokens = out.shape[1]
        if n_tokens not in self._token_masks:
            grid = attention_mixing.layer_grid(n_tokens, *self._size)
            self._token_masks[n_tokens] = attention_mixing.mask_to_tokens(self._M, *grid)
        out_source = out[self._source_row] if self._features is None else self._recorded(self._features.outputs[layer])
        return attention_mixing.mix_outputs(out, out_source, self._token_masks[n_tokens])

    def _recorded(self, layer: Tensor) -> Tensor:
        """The features [E, G, ...] of one layer as batch rows [R, ...]; without guidance, only those of the text."""
        return layer[-self._n_terms :, self._source_of].flatten(0, 1)

    def _check_rows(self, rows: Tensor) -> None:
        """Raise ValueError if `set` was not called, or was called for another number of rows."""
        if self._n_rows is None:
            raise ValueError("the U-Net runs with a MaskControl that is not set; call MaskControl.set before every forward pass")
        if len(rows) != self._n_rows:
            raise ValueError(f"the MaskControl was set for {self._n_rows} rows, the forward pass has {len(rows)}; set it again")
