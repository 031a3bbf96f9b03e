"""Optimizers: AdamW, optionally with 8-bit or paged state (bitsandbytes)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import torch

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]


class OptimizerError(RuntimeError):
    """Raised for an optimizer that is not available."""


def build_optimizer(
    name: OptimizerName, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), or its 8-bit form (Dettmers et al., arXiv 2110.02861).

    Raises OptimizerError for an optimizer of bitsandbytes without that package or without a GPU.
    """
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    check_optimizer(name, groups[0]["params"][0].device.type)
    bitsandbytes = importlib.import_module("bitsandbytes")
    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}[name]
    optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(
        list(groups), lr=lr, betas=betas, weight_decay=weight_decay
    )
    return optimizer


def check_optimizer(name: OptimizerName, device_type: str) -> None:
    """Raise OptimizerError for an optimizer of bitsandbytes without that package or without a GPU."""
    if name == "adamw":
        return
    if device_type != "cuda":
        raise OptimizerError(f"want a GPU for train.optimizer {name}, got {device_type}; use adamw")
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise OptimizerError(
            f"want bitsandbytes for train.optimizer {name}, got {error}; `uv pip install bitsandbytes`, or use adamw"
        ) from error
