"""Attention control in a U-Net of diffusers: every attention layer mixes a row's output with its source's.

Shapes: R rows of a batch, N tokens of a layer, D their width, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from emuedit.core import attention

_PLAIN = ("AttnProcessor", "AttnProcessor2_0")


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
        self._qk_row = attention.injected(rows, source_row, inject)
        self._at: dict[int, Tensor] = {}

    def qk(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Queries, keys (and their mask) [R, ...] with injection done."""
        self._check(tensors[0])
        if not self._injects:
            return tensors
        return tuple(None if one is None else one[self._qk_row] for one in tensors)

    def mix(self, out: Tensor) -> Tensor:
        """A layer's outputs [R, N, D], mixed."""
        source_row = self._check(out)
        if not self._mixes:
            return out
        n_tokens = out.shape[1]
        if n_tokens not in self._at:
            self._at[n_tokens] = attention.tokens(self._M, *attention.grid(n_tokens, *self._size))
        return attention.mixed(out, source_row, self._at[n_tokens])

    def _check(self, rows: Tensor | None) -> Tensor:
        if self._source_row is None:
            raise ValueError("the U-Net runs under a Control of which nothing was set; call Control.set before every forward")
        if rows is not None and len(rows) != len(self._source_row):
            raise ValueError(f"the Control was set for {len(self._source_row)} rows, the forward has {len(rows)}; set it anew")
        return self._source_row


class SoftMaskProcessor:
    """An attention processor; but for `control` it follows diffusers' AttnProcessor2_0 (0.42) and adds its upcast."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [R, N, D] or [R, D, h, w] -> the same shape."""
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        own = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = len(context)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if own:
            context = hidden_states
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, key, value))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if own:
            query, key, attention_mask = self.control.qk(query, key, attention_mask)
        out = _attend(query, key, value, attention_mask, attn.upcast_attention)
        out = self.control.mix(out.transpose(1, 2).flatten(2).to(query.dtype))
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


@contextmanager
def controlled(unet: Any) -> Iterator[Control]:
    """Put a Control into every attention layer of a U-Net; the processors from before come back at the end.

    Raises ValueError for a U-Net with processors of its own (adapters, other controls): they would be switched off silently.
    """
    before = unet.attn_processors
    if strange := sorted({type(one).__name__ for one in before.values()} - set(_PLAIN)):
        raise ValueError(f"want a U-Net with plain attention ({', '.join(_PLAIN)}), got {strange}; unload the adapters first")
    control = Control()
    unet.set_attn_processor({name: SoftMaskProcessor(control) for name in before})
    try:
        yield control
    finally:
        unet.set_attn_processor(dict(before))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, upcast: bool) -> Tensor:
    if not upcast:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast(query.device.type, enabled=False):
        wide = None if mask is None else mask.float()
        return torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=wide)
