"""Encode texts to a U-Net's hidden states, like the pipelines of Stable Diffusion 1.x, 2.x and XL.

Their `encode_prompt` tokenizes every text twice and decodes the truncated part, in each call. When text encoders are trained, the
same instructions are encoded in every step, and this took longer than the step. Here each text is tokenized once.

Shapes: B texts, L tokens, D the total width of the hidden states, P the width of the pooled text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

REMEMBERED_TEXTS = 2**16
_TOKENIZER_LOCK = Lock()  # global, since several `TextEncoding`s may share a tokenizer


class Tokens(NamedTuple):
    """Texts for one encoder."""

    ids: Tensor  # int64 [B, L]
    mask: Tensor  # int64 [B, L], 1 for the text and 0 for padding

    def to(self, device: torch.device) -> Tokens:
        """The tokens on a device."""
        return Tokens(self.ids.to(device), self.mask.to(device))


class _OneText(NamedTuple):
    """A text for one encoder."""

    ids: Tensor  # int64 [L]
    mask: Tensor  # int64 [L]
    is_truncated: bool
    """Whether the text was truncated."""


class TextEncoding:
    """The tokenizers and text encoders of a pipeline: one of each, or SDXL's two."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
        self.tokenizers, self.encoders = tuple(tokenizers), tuple(encoders)
        # No bound method: a reference cycle would keep the encoders in memory after their last use.
        self._tokens = lru_cache(REMEMBERED_TEXTS)(partial(_tokenize, self.tokenizers))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, ...]:
        """Tokens for each encoder, on the CPU, truncated to the tokenizer's maximum length."""
        per_encoder = zip(*(self._tokens(text) for text in texts), strict=True)
        return tuple(
            Tokens(torch.stack([text.ids for text in rows]), torch.stack([text.mask for text in rows])) for rows in per_encoder
        )

    def encode(self, tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, L, D], and with two encoders the pooled text [B, P] of the second, else None; differentiable.

        A single encoder gives its last hidden states after the final norm; two give their penultimate ones, concatenated (SDXL,
        arXiv 2307.01952, section 2.1). Tokens are on the encoders' device.
        """
        outputs = []
        for (ids, mask), encoder in zip(tokens, self.encoders, strict=True):
            uses_mask = getattr(encoder.config, "use_attention_mask", False)
            outputs.append(encoder(ids, attention_mask=mask if uses_mask else None, output_hidden_states=len(self.encoders) > 1))
        if len(outputs) == 1:
            return outputs[0][0].to(self.encoders[0].dtype), None
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return hidden.to(self.encoders[-1].dtype), outputs[-1][0]

    def is_truncated(self, text: str) -> bool:
        """Whether a text is truncated by an encoder."""
        return any(tokens.is_truncated for tokens in self._tokens(text))


def _tokenize(tokenizers: Sequence[Any], text: str) -> tuple[_OneText, ...]:
    """The tokens of the text for each encoder, padded or truncated.

    Tokenizers store padding and truncation as state set by each call, so only one thread may call them: batches are prepared in
    a separate thread.
    """
    tokens = []
    for tokenizer in tokenizers:
        length = tokenizer.model_max_length
        with _TOKENIZER_LOCK:
            padded = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            is_truncated = len(tokenizer(text, verbose=False).input_ids) > length
        tokens.append(_OneText(padded.input_ids[0], padded.attention_mask[0], is_truncated))
    return tuple(tokens)
