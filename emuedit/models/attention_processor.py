"""An attention layer of diffusers with its inside open: what controls or reads a U-Net's attention overrides one of the hooks.

Shapes: R rows of a batch, N tokens of a layer, D their width, L tokens it looks at, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN = ("AttnProcessor", "AttnProcessor2_0")


class Processor:
    """An attention processor; but for its hooks it follows diffusers' AttnProcessor2_0 (0.42) and adds its upcast."""

    def check(self, attn: Any, hidden_states: Tensor) -> None:
        """Hook: refuse a layer."""

    def qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hook: queries and keys of a self-attention [R, heads, N, D / heads] and their mask, before they meet."""
        return query, key, mask

    def attend(self, own: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Hook: queries [R, heads, N, ...] look at keys and values [R, heads, L, ...]; `own` in a self-attention."""
        del own
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def out(self, out: Tensor) -> Tensor:
        """Hook: what was seen [R, N, D], before the layer's last projection."""
        return out

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [R, N, D] or [R, D, h, w] -> the same shape."""
        self.check(attn, hidden_states)
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
            query, key, attention_mask = self.qk(query, key, attention_mask)
        if attn.upcast_attention:
            wide = None if attention_mask is None else attention_mask.float()
            with torch.autocast(query.device.type, enabled=False):
                out = self.attend(own, query.float(), key.float(), value.float(), wide)
        else:
            out = self.attend(own, query, key, value, attention_mask)
        out = self.out(out.transpose(1, 2).flatten(2).to(query.dtype))
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


@contextmanager
def installed(unet: Any, processor: Processor) -> Iterator[None]:
    """Put a processor into every attention layer of a U-Net; the processors from before come back at the end.

    Raises ValueError for a U-Net with processors of its own (adapters, other controls): they would be switched off silently.
    """
    before = unet.attn_processors
    if strange := sorted({type(one).__name__ for one in before.values()} - set(_PLAIN)):
        raise ValueError(f"want a U-Net with plain attention ({', '.join(_PLAIN)}), got {strange}; unload the adapters first")
    unet.set_attn_processor(dict.fromkeys(before, processor))
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))
