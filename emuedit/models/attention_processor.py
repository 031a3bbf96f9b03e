"""Attention processors for diffusers: one with hooks for subclasses, and one for training on a CPU.

Shapes: R batch rows, N query tokens of a layer, D the layer's width, L key tokens, h and w the size of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.models import model_sources

PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "ShortUnfusedAttnProcessor")
MAX_UNFUSED_SCORES = 256 * 256
"""Query tokens times key tokens up to which `ShortUnfusedAttnProcessor` uses unfused attention."""


class HookedAttnProcessor:
    """Equivalent to diffusers' AttnProcessor2_0 (0.42) with AttnProcessor's upcast, plus hooks."""

    def check_layer(self, attn: Any, hidden_states: Tensor) -> None:
        """Hook: raise an error for a layer that the subclass does not support."""

    def process_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hook: queries and keys of a self-attention [R, heads, N, D / heads], and their mask, before the attention."""
        return query, key, mask

    def attend(self, is_self_attention: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Hook: the attention of queries [R, heads, N, ...] over keys and values [R, heads, L, ...]."""
        del is_self_attention
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def process_output(self, out: Tensor) -> Tensor:
        """Hook: the attention's output [R, N, D], before the layer's output projection."""
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
        self.check_layer(attn, hidden_states)
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        is_self_attention = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows = len(context)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if is_self_attention:
            context = hidden_states
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if is_self_attention:
            query, key, attention_mask = self.process_qk(query, key, attention_mask)
        if attn.upcast_attention:
            mask = None if attention_mask is None else attention_mask.float()
            with torch.autocast(query.device.type, enabled=False):
                out = self.attend(is_self_attention, query.float(), key.float(), value.float(), mask)
        else:
            out = self.attend(is_self_attention, query, key, value, attention_mask)
        out = self.process_output(out.transpose(1, 2).flatten(2).to(query.dtype))
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


P = TypeVar("P", bound=HookedAttnProcessor)


@contextmanager
def install_processor(unet: Any, processor: P) -> Iterator[P]:
    """Context manager that uses a processor in every attention layer of a U-Net, and restores the old ones afterwards.

    Raises ValueError for a U-Net with non-standard processors (adapters, other attention control), which would be disabled
    silently.
    """
    before = unet.attn_processors
    if others := sorted({type(old).__name__ for old in before.values()} - set(PLAIN_PROCESSORS)):
        raise ValueError(
            f"want a U-Net with plain attention ({', '.join(PLAIN_PROCESSORS)}), got {others}; unload the adapters first"
        )
    unet.set_attn_processor(dict.fromkeys(before, processor))
    try:
        yield processor
    finally:
        unet.set_attn_processor(dict(before))


class ShortUnfusedAttnProcessor:
    """Unfused attention for short sequences, torch's fused attention for long ones; both from diffusers.

    Unfused attention keeps the scores for the backward pass, whose size is quadratic in the number of tokens.
    """

    def __init__(self) -> None:
        processors = model_sources.import_library("diffusers.models.attention_processor")
        self._unfused, self._fused = processors.AttnProcessor(), processors.AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any) -> Tensor:
        """Hidden states [R, N, D] or [R, D, h, w] -> the same shape."""
        n_queries = hidden_states.shape[1] if hidden_states.dim() == 3 else hidden_states[0, 0].numel()
        n_keys = n_queries if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        attend = self._unfused if n_queries * n_keys <= MAX_UNFUSED_SCORES else self._fused
        out: Tensor = attend(attn, hidden_states, encoder_hidden_states, **options)
        return out


def use_unfused_attention_on_cpu(unet: Any, text_encoders: Iterable[Any], dtype: torch.dtype) -> None:
    """Use unfused attention for short sequences when training in half precision on a CPU; else do nothing.

    `dtype`: number format of the computations. Networks on the meta device are treated like networks on a CPU. In bfloat16 the
    backward pass of fused attention is slow there: unfused attention takes a seventh of the time for 256 tokens. In float32 it is
    never faster (docs/log.md).
    """
    if unet.device.type in ("cpu", "meta") and dtype != torch.float32:
        unet.set_attn_processor(ShortUnfusedAttnProcessor())
        for encoder in text_encoders:
            encoder.set_attn_implementation("eager")
