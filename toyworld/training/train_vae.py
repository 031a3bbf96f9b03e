"""Training of the base model's VAE: 64x64 images to 16x16 latents of 8 channels, each with about unit variance."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from emuedit.models.image_tensors import from_uint8
from toyworld.training.render_cache import N_MIXED, cache_folder, load_mixed
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=4000, batch=16, lr=2e-3, decay_share=0.5, weight_decay=0.0)


def build() -> AutoencoderTiny:
    """An autoencoder with random weights: 48 channels, 0.6 M parameters."""
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 1, 0),
        scaling_factor=1.0,
    )


def run(scratch: Path, recipe: Recipe = RECIPE, n_images: int = N_MIXED) -> AutoencoderTiny:
    """Train the VAE and return it with its EMA weights, on the CPU.

    The loss is ours: L1 and squared error of the reconstruction, and a penalty that pulls each latent channel to zero
    mean and unit variance. A little noise is added to the latents before they are decoded.
    """
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    images = load_mixed(cache_folder(scratch), n_images)

    def loss_at(step: int) -> Tensor:
        rows = np.random.default_rng(step).integers(len(images), size=recipe.batch)
        x = from_uint8(images[rows]).to(device(), memory_format=torch.channels_last)
        with autocast():
            z = vae.encode(x).latents
            y = vae.decode(z + 0.04 * torch.randn_like(z)).sample
        z, y = z.float(), y.float()
        penalty = z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()
        return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.02 * penalty

    return train(vae, loss_at, recipe, scratch)
