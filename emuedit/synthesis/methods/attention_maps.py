"""Attention layers of Prompt-to-Prompt: edit and record cross-attention maps, share self-attention with the source.

Hertz et al., arXiv 2208.01626.

Shapes: R batch rows (with guidance, the rows without text come first), R' rows with text, E edited rows, N tokens of a
layer, L tokens of a caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emuedit.models.attention_processor import HookedAttnProcessor


@dataclass(frozen=True)
class MapEdits:
    """Edits of the cross-attention maps of E rows: P_s A + P_t diag(target_weight).

    P_s is the map of the source, P_t the row's own map, see `core.token_alignment.TokenMapping`.
    """

    rows: Tensor  # int64 [E], the edited rows
    source_rows: Tensor  # int64 [E], the rows of their sources
    A: Tensor  # float [E, L, L]
    target_weight: Tensor  # float [E, L]


class AttentionMapControl(HookedAttnProcessor):
    """Attention that edits maps and shares queries and keys as set for the current forward pass; records maps over all passes.

    Call `set` before every forward pass of the U-Net.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, tuple[Tensor, int]] = {}  # number of tokens -> sum of the maps, number of maps
        self._self_sizes: set[int] = set()  # numbers of tokens of the self-attention layers

    def set(
        self,
        source_row: Tensor,
        max_self_tokens: Tensor,
        first_text_row: int,
        recorded_sizes: frozenset[int] = frozenset(),
        map_edits: MapEdits | None = None,
    ) -> None:
        """Describe the next forward pass.

        `source_row` int64 [R]: row of each row's source; a source points at itself. `max_self_tokens` int64 [R]: self-attention
        uses the source's queries and keys in layers of at most this many tokens; 0: in no layer.
        `first_text_row`: the first row with text. Maps of cross-attention layers are recorded, as edited, if their number of
        tokens is in `recorded_sizes`. `map_edits` None: cross-attention maps are unchanged.
        """
        self.source_row, self.max_self_tokens, self.first_text_row = source_row, max_self_tokens, first_text_row
        self.recorded_sizes, self.map_edits = recorded_sizes, map_edits

    def mean_map(self, n_tokens: int) -> Tensor:
        """Mean of the edited maps over layers with this many tokens, heads and forward passes, [R', N, L].

        Raises ValueError if no such layer was recorded.
        """
        if n_tokens not in self._recorded:
            raise ValueError(
                f"want maps of layers of {n_tokens} tokens, got those of {sorted(self._recorded)}; "
                "set the n_tokens of LocalBlend to a size of the U-Net's cross-attention layers"
            )
        total, n_maps = self._recorded[n_tokens]
        return total / n_maps

    def check_self_tokens(self) -> None:
        """Raise ValueError if a row's limit in the last forward pass is above 0, but below the size of all self-attention."""
        limits = self.max_self_tokens[self.max_self_tokens > 0].tolist()
        if limits and self._self_sizes and min(limits) < min(self._self_sizes):
            raise ValueError(
                f"want self_tokens of at least {min(self._self_sizes)}, the smallest self-attention of the U-Net, "
                f"got {min(limits)}; set one of {sorted(self._self_sizes)}, or self_fraction: 0"
            )

    def check_layer(self, attn: Any, hidden_states: Tensor) -> None:
        """Raise ValueError for attention that is not over token sequences, such as a VAE's."""
        if hidden_states.ndim != 3 or attn.spatial_norm is not None or attn.group_norm is not None:
            raise ValueError(
                "want attention over rows of tokens [R, N, D], as in a diffusion U-Net, "
                f"got hidden states {tuple(hidden_states.shape)} or a layer with spatial or group norm"
            )

    def process_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Replace queries, keys and their mask [R, ...] of self-attention by the source's, in rows where this is set."""
        self._self_sizes.add(query.shape[-2])
        injected = self.max_self_tokens >= query.shape[-2]
        if not injected.any():
            return query, key, mask
        row = torch.where(injected, self.source_row, torch.arange(len(injected))).to(query.device)
        return query[row], key[row], None if mask is None else mask[row]

    def attend(self, is_self_attention: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Compute explicit maps of the rows with text if they are edited or recorded, else fused attention."""
        needs_maps = self.map_edits is not None or query.shape[2] in self.recorded_sizes
        if is_self_attention or not needs_maps:
            return super().attend(is_self_attention, query, key, value, mask)
        first = self.first_text_row
        null_mask, text_mask = (None, None) if mask is None else (mask[:first], mask[first:])
        text_out = self._attend_with_maps(query[first:], key[first:], value[first:], text_mask)
        if not first:
            return text_out
        null_out = super().attend(is_self_attention, query[:first], key[:first], value[:first], null_mask)
        return torch.cat([null_out, text_out])

    def _attend_with_maps(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled dot-product attention with explicit maps P = softmax(Q K^T / sqrt(d) + mask)."""
        scores = (query * query.shape[-1] ** -0.5) @ key.mT  # in float16 a product before scaling may overflow
        scores = scores if mask is None else scores + mask
        return (self._edit_maps(scores.softmax(-1)).to(value.dtype) @ value).to(query.dtype)

    def _edit_maps(self, P: Tensor) -> Tensor:
        """Apply `map_edits` to the maps P [R', heads, N, L] of the rows with text, then record them.

        The authors' code stores the maps before the edit, but as a view of the tensor that is then edited in place.
        """
        if (edits := self.map_edits) is not None:
            rows, source_rows = ((row - self.first_text_row).to(P.device) for row in (edits.rows, edits.source_rows))
            A, target_weight = edits.A[:, None].to(P), edits.target_weight[:, None, None].to(P)
            edited = P[source_rows] @ A + P[rows] * target_weight
            P = P.index_copy(0, rows, edited.to(P.dtype))
        n_tokens = P.shape[2]
        if n_tokens in self.recorded_sizes:
            total, n_maps = self._recorded.get(n_tokens, (torch.zeros((), device=P.device), 0))
            self._recorded[n_tokens] = (total + P.mean(1).float(), n_maps + 1)
        return P
