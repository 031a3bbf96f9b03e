"""Attention maps of a U-Net, edited and read on the way: what the layers of Prompt-to-Prompt do.

Shapes: R rows of a batch (the half without text first, if there is one), N tokens of a layer, L tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emuedit.models.attention_processor import Processor, installed


class Maps:
    """What the layers are told of a forward, and what they saw. Set all of it before every forward of the U-Net."""

    source_row: Tensor  # int64 [R]: the row of a row's source; a source points at itself
    self_tokens: Tensor  # int64 [R]: self-attention is the source's in layers of at most so many tokens; 0: in none
    edited: Tensor  # int64 [E]: rows whose cross-attention maps are edited
    its_source: Tensor  # int64 [E]: rows of their sources
    A: Tensor  # float [E, L, L], see core.alignment
    own: Tensor  # float [E, L]
    weight: Tensor  # float [E, L]: factors of the words
    first_text_row: int  # where the half with text begins
    read: frozenset[int]  # cross-attention of layers of so many tokens is summed up

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Tensor, int]] = {}

    def seen(self, n_tokens: int) -> Tensor:
        """Mean map of the layers of that size in all forwards so far, before any edit: [rows with text, N, L]."""
        if n_tokens not in self._seen:
            raise ValueError(f"want maps of layers of {n_tokens} tokens, got those of {sorted(self._seen)}; mend the blend")
        total, n = self._seen[n_tokens]
        return total / n

    def qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys (and their mask) [R, ...] of a self-attention, those of the source where they are wanted."""
        taken = self.self_tokens >= query.shape[-2]
        if not taken.any():
            return query, key, mask
        row = torch.where(taken, self.source_row, torch.arange(len(taken))).to(query.device)
        return query[row], key[row], None if mask is None else mask[row]

    def free(self, n_tokens: int) -> bool:
        """Whether nobody edits or reads this layer's cross-attention."""
        return not len(self.edited) and n_tokens not in self.read

    def edit(self, P: Tensor) -> Tensor:
        """Maps of the half with text [R', heads, N, L], edited: weight (P_s A + P own), and read before that."""
        n_tokens = P.shape[2]
        if n_tokens in self.read:
            total, n = self._seen.get(n_tokens, (torch.zeros((), device=P.device), 0))
            self._seen[n_tokens] = (total + P.mean(1).float(), n + 1)
        if not len(self.edited):
            return P
        rows = (self.edited - self.first_text_row).to(P.device)
        P_s, A = P[(self.its_source - self.first_text_row).to(P.device)], self.A[:, None].to(P)
        new = (P_s @ A + P[rows] * self.own[:, None, None].to(P)) * self.weight[:, None, None].to(P)
        return P.index_copy(0, rows, new.to(P.dtype))


class MapsProcessor(Processor):
    """Attention whose cross-attention maps, and self-attention's queries and keys, are edited as Maps say."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps

    def check(self, attn: Any, hidden_states: Tensor) -> None:
        """Maps belong to tokens."""
        if hidden_states.ndim != 3 or attn.spatial_norm is not None or attn.group_norm is not None:
            raise ValueError("want attention over rows of tokens, as in a diffusion U-Net, got one over a picture's channels")

    def qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those of the source where they are wanted."""
        return self.maps.qk(query, key, mask)

    def attend(self, own: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As ever, but for cross-attention in the half with text: its maps are made in full where somebody wants them."""
        if own or self.maps.free(query.shape[2]):
            return super().attend(own, query, key, value, mask)
        first = self.maps.first_text_row
        masks = (None, None) if mask is None else (mask[:first], mask[first:])
        out = self._edited(query[first:], key[first:], value[first:], masks[1])
        return torch.cat([super().attend(own, query[:first], key[:first], value[:first], masks[0]), out]) if first else out

    def _edited(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores + mask
        return (self.maps.edit(scores.softmax(-1)).to(value.dtype) @ value).to(query.dtype)


@contextmanager
def watched(unet: Any) -> Iterator[Maps]:
    """Put Maps into every attention layer of a U-Net, see `models.attention.installed`."""
    maps = Maps()
    with installed(unet, MapsProcessor(maps)):
        yield maps
