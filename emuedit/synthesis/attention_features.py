"""Record the attention of sources while they are sampled, so that forward passes of variants need no source rows.

Shapes: E terms of classifier-free guidance (null before text), G sources, N tokens of a layer, D the layer's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.models.attention_processor import HookedAttnProcessor


@dataclass(frozen=True)
class AttentionFeatures:
    """Attention of G sources in one forward pass of a U-Net, by layer in execution order."""

    queries: tuple[Tensor, ...]  # of the self-attentions [E, G, heads, N, D / heads]
    keys: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]  # of all attentions, before their output projection [E, G, N, D]

    @property
    def n_terms(self) -> int:
        """E: 1 for a forward pass without guidance, else 2."""
        return len(self.outputs[0])

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.queries, *self.keys, *self.outputs))

    @staticmethod
    def cat(*parts: AttentionFeatures) -> AttentionFeatures:
        """Concatenate the features of several batches of sources."""
        fields = zip(*((part.queries, part.keys, part.outputs) for part in parts), strict=True)
        joined = (tuple(torch.cat(layer, dim=1) for layer in zip(*field, strict=True)) for field in fields)
        return AttentionFeatures(*joined)


class FeatureRecorder(HookedAttnProcessor):
    """Records the attention of every forward pass until `take` returns it."""

    def __init__(self, max_bytes: float = math.inf) -> None:
        """`max_bytes`: limit per forward pass; beyond it, everything is dropped and recording stops."""
        self.is_recording = True
        """Whether it records."""
        self.n_bytes_left, self._max_bytes = max_bytes, max_bytes
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def process_qk(self, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Record queries and keys of a self-attention. Raises ValueError for self-attention with a mask."""
        if self.is_recording:
            if mask is not None:
                raise ValueError("want self-attention without a mask, got one with; its queries and keys cannot be shared")
            self._append(self._queries, query)
            self._append(self._keys, key)
        return query, key, mask

    def process_output(self, out: Tensor) -> Tensor:
        """Record the output of a layer."""
        self._append(self._outputs, out)
        return out

    def take(self, n_sources: int) -> AttentionFeatures:
        """The features of the last forward pass, whose rows are the sources, once or twice."""
        lists = (self._queries, self._keys, self._outputs)
        features = AttentionFeatures(*(tuple(tensor.unflatten(0, (-1, n_sources)) for tensor in tensors) for tensors in lists))
        self._clear()
        return features

    def _append(self, tensors: list[Tensor], tensor: Tensor) -> None:
        if self.is_recording:
            tensors.append(tensor)
            self.n_bytes_left -= tensor.nbytes
            if self.n_bytes_left < 0:
                self.is_recording = False
                self._clear()

    def _clear(self) -> None:
        for tensors in (self._queries, self._keys, self._outputs):
            tensors.clear()
        self.n_bytes_left = self._max_bytes
