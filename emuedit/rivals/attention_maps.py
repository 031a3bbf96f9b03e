"""Attention maps of a U-Net, edited and read on the way: what the layers of Prompt-to-Prompt do.

Shapes: R rows of a batch (the half without text first, if there is one), N tokens of a layer, L tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_PLAIN = ("AttnProcessor", "AttnProcessor2_0")


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

    def qk(self, *tensors: Tensor | None) -> list[Tensor | None]:
        """Queries, keys (and their mask) [R, ...] of a self-attention, those of the source where they are wanted."""
        n_tokens = next(one.shape[-2] for one in tensors if one is not None)
        taken = self.self_tokens >= n_tokens
        if not taken.any():
            return list(tensors)
        row = torch.where(taken, self.source_row, torch.arange(len(taken)))
        return [None if one is None else one[row.to(one.device)] for one in tensors]

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


class MapsProcessor:
    """An attention processor; but for `maps` it follows diffusers' AttnProcessor2_0 (0.42) and adds its upcast."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [R, N, D] -> the same shape; `temb` is for the spatial norms that a diffusion U-Net has not."""
        del temb
        residual = hidden_states
        if hidden_states.ndim != 3 or attn.spatial_norm is not None or attn.group_norm is not None:
            raise ValueError("want attention over rows of tokens, as in a diffusion U-Net, got one over a picture's channels")
        own = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = len(context)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        if not own and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, key, value))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if own:
            query, key, attention_mask = self.maps.qk(query, key, attention_mask)
        if attn.upcast_attention:
            with torch.autocast(query.device.type, enabled=False):
                out = self._attend(own, query.float(), key.float(), value.float(), attention_mask)
        else:
            out = self._attend(own, query, key, value, attention_mask)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2).to(query.dtype)))
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def _attend(self, own: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if own or self.maps.free(query.shape[2]):
            return _plain(query, key, value, mask)
        first = self.maps.first_text_row
        masks = (None, None) if mask is None else (mask[:first], mask[first:])
        out = self._edited(query[first:], key[first:], value[first:], masks[1])
        return torch.cat([_plain(query[:first], key[:first], value[:first], masks[0]), out]) if first else out

    def _edited(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention whose maps are made in full."""
        scores = query @ key.mT * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores + mask
        return (self.maps.edit(scores.softmax(-1)).to(value.dtype) @ value).to(query.dtype)


@contextmanager
def watched(unet: Any) -> Iterator[Maps]:
    """Put Maps into every attention layer of a U-Net; the processors from before come back at the end.

    Raises ValueError for a U-Net with processors of its own (adapters, other controls): they would be switched off silently.
    """
    before = unet.attn_processors
    if strange := sorted({type(one).__name__ for one in before.values()} - set(_PLAIN)):
        raise ValueError(f"want a U-Net with plain attention ({', '.join(_PLAIN)}), got {strange}; unload the adapters first")
    maps = Maps()
    unet.set_attn_processor({name: MapsProcessor(maps) for name in before})
    try:
        yield maps
    finally:
        unet.set_attn_processor(dict(before))


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
