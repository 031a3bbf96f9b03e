"""A training step of the editor on meta tensors, which have shapes and formats but no data: it needs almost no memory and time.

PyTorch ignores autocast and fused attention on the meta device, so `MetaAutocast` emulates their effect on a CPU or GPU.
Shapes: B samples, C latent channels, h and w latent sizes, L text tokens of width D, D_v the width of a task embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextCondition

Module = TypeVar("Module", bound=nn.Module)

_IN_HALF: frozenset[Any] = frozenset({
    F.linear, F.conv2d, torch.bmm, torch.baddbmm, torch.matmul, torch.addmm, torch.mm, torch.einsum,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.mm,
})  # fmt: skip
"""Operations of the networks that autocast computes in half precision (PyTorch's documentation of `torch.amp`)."""
_IN_FLOAT32_ON_GPU: frozenset[Any] = frozenset({
    F.layer_norm, F.group_norm, F.softmax, torch.softmax, torch.Tensor.softmax, torch.norm, torch.linalg.norm,
    torch.linalg.vector_norm, F.interpolate, F.mse_loss,
})  # fmt: skip
"""Operations of the networks that autocast computes in float32 on a GPU."""


class MetaAutocast(TorchFunctionMode):
    """Emulates autocast to `dtype` and fused attention of `device` ('cuda' or 'cpu') for meta tensors.

    Fused attention is counted as the kernel that PyTorch chooses: on 'cuda' flash attention for half precision, and
    memory-efficient attention for float32 or with a mask; on 'cpu' flash attention. All save queries, keys, values, output and
    one number per query.
    """

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.half = None if dtype == torch.float32 else dtype
        self.in_float32 = _IN_FLOAT32_ON_GPU if device == "cuda" else frozenset()
        self.on_gpu = device == "cuda"
        self._copies: dict[int, Tensor] | None = {}

    def end_forward(self) -> None:
        """Drop the half-precision copies of weights, which autocast caches until its block ends."""
        self._copies = None

    def checkpoint(self, function: Callable[..., Any], *args: Any) -> Any:
        """Gradient checkpointing (arXiv 1604.06174) of a layer; the recomputation uses the same formats."""
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), self)
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with arguments cast as by autocast."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if self.half is not None:
            if func in _IN_HALF:
                return func(*(self._cast(x, self.half) for x in args), **{k: self._cast(x, self.half) for k, x in kwargs.items()})
            if func in self.in_float32:
                float32 = torch.float32
                return func(*(self._cast(x, float32) for x in args), **{k: self._cast(x, float32) for k, x in kwargs.items()})
        return func(*args, **kwargs)

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not isinstance(x, Tensor) or x.dtype == dtype or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        if self._copies is None or dtype != self.half or not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        if id(x) not in self._copies:
            self._copies[id(x)] = x.to(dtype)
        return self._copies[id(x)]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Fused attention; dropout, causality and scale do not affect the saved tensors."""
        if self.half is not None:
            query, key, value = (self._cast(x, self.half) for x in (query, key, value))
        if not self.on_gpu:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=attn_mask)[0]
        if attn_mask is None and query.dtype != torch.float32:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        mask = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True)[0]


def meta_copy(module: Module, channels_last: bool = False) -> Module:
    """A copy of a module with parameters and buffers on the meta device; the module is not changed."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.contiguous_format
        shape_only = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta", memory_format=layout)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(shape_only, tensor.requires_grad) if is_parameter else shape_only
    return copy.deepcopy(module, memo)


def editor_loss(
    net: EditorUNet,
    text_encoders: Iterable[nn.Module],
    latent: tuple[int, int, int],
    n_tokens: int,
    batch_size: int,
    channels_last: bool = False,
) -> Tensor:
    """A scalar that depends on all outputs of a training-like forward pass with random inputs on the net's device.

    latent: (C, h, w). n_tokens: L of the instruction, without the task's token. Trained text encoders are part of the pass.
    """
    config, device = net.unet.config, net.unet.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    z_t, c_I = (torch.randn(batch_size, *latent, device=device).to(memory_format=layout) for _ in range(2))
    hidden = torch.randn(batch_size, n_tokens, net.table.to_token.out_features, device=device)
    pooled = torch.randn(batch_size, pooled_width, device=device) if (pooled_width := pooled_text_width(config)) else None
    ids = torch.zeros(batch_size, n_tokens, dtype=torch.int64, device=device)
    encoded = [encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2] for encoder in text_encoders]
    t = torch.zeros(batch_size, dtype=torch.int64, device=device)
    v = net.table.v[torch.zeros(batch_size, dtype=torch.int64, device=device)]  # [B, D_v]
    prediction = net(z_t, t, c_I, TextCondition(hidden, pooled), v)
    outputs = [prediction.e, *([] if prediction.change_logits is None else [prediction.change_logits]), *encoded]
    return torch.stack([output.float().square().mean() for output in outputs]).sum()


def pooled_text_width(config: Any) -> int:
    """Width P of the pooled text that a U-Net with SDXL's config takes (arXiv 2307.01952, section 2.2), or 0 for none."""
    if config.addition_embed_type != "text_time":
        return 0
    width: int = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return width
