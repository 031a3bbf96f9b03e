"""Encode images to latents and decode them, for every VAE class of diffusers.

The classes differ in three ways, all determined from the VAE: whether `encode` returns a distribution or plain latents;
whether there is a shift as well as a scaling factor; and whether the config has `latents_mean` and `latents_std`, a per-channel
normalisation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def encode(vae: Any, images: torch.Tensor, factor: int) -> torch.Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, H/factor, W/factor].

    Latents are the mean of the VAE's distribution, not a sample. Raises ValueError for sides that are not multiples of
    `factor`.
    """
    check_size(images.shape[-2], images.shape[-1], factor)
    with torch.no_grad(), _overflow_avoided(vae):
        out = vae.encode(images.to(_device(vae), vae.dtype))
    raw: torch.Tensor = (out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents).float()
    shift, scale = _shift_and_scale(vae, raw)
    z: torch.Tensor = (raw - shift) * scale
    return z


def decode(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """Scaled latents [B, C, h, w] -> images, float32 [B, 3, H, W] clamped to [-1, 1]."""
    shift, scale = _shift_and_scale(vae, z)
    with torch.no_grad(), _overflow_avoided(vae):
        image: torch.Tensor = vae.decode((z / scale + shift).to(_device(vae), vae.dtype)).sample
    return image.float().clamp(-1, 1)


def check_size(height: int, width: int, factor: int) -> None:
    """Raise ValueError unless both sides are multiples of `factor`, the VAE's downsampling factor."""
    if height % factor or width % factor:
        raise ValueError(f"height and width must be multiples of {factor} px, got {height} x {width}; crop or resize first")


def _overflow_avoided(vae: Any) -> AbstractContextManager[object]:
    """Disable float16 autocast for a VAE whose config has `force_upcast`, see `text_to_image.avoid_vae_overflow`."""
    kind = torch.device(_device(vae)).type
    has_autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not has_autocast or torch.get_autocast_dtype(kind) != torch.float16 or not getattr(vae.config, "force_upcast", False):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _device(vae: Any) -> Any:
    """Execution device of the VAE: offloaded weights are moved there, but not all inputs of `encode` and `decode`.

    Model offload places a hook with the device on the VAE, sequential offload on its submodules only, whose weights are
    otherwise on the meta device (both of accelerate); group offload has hooks of diffusers.
    """
    for module in vae.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        registry = getattr(module, "_diffusers_hook", None)
        group_hook = None if registry is None else registry.get_hook("group_offloading")
        if group_hook is not None:
            device = group_hook.config.onload_device
        if device is not None:
            return torch.device(device)
    return vae.device


def _shift_and_scale(vae: Any, like: torch.Tensor) -> tuple[Any, Any]:
    """(shift, scale) with scaled = (raw - shift) * scale; per channel [1, C, 1, 1] if the config has statistics."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shift = torch.tensor(mean, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
        channel_std = torch.tensor(std, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
        return shift, config.scaling_factor / channel_std
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
