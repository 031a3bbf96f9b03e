"""The base_model's autoencoder: 64x64 pictures to 16x16 latents of 8 channels, each of about unit spread."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from emuedit.models.image_tensors import from_uint8
from toyworld.training.render_cache import mixed_pictures
from toyworld.training.training_run import Recipe, bf16, device, train

RECIPE = Recipe(steps=4000, batch=16, lr=2e-3, decay_share=0.5, weight_decay=0.0)


def build() -> AutoencoderTiny:
    """Random weights. 48 channels, 0.6 M parameters."""
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 1, 0),
        scaling_factor=1.0,
    )


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> AutoencoderTiny:
    """Train it: L1 and squared error, a pull of every latent channel to zero mean and unit spread, a little latent noise."""
    torch.manual_seed(0)
    vae = build().to(memory_format=torch.channels_last)
    pool = mixed_pictures(scratch.parent / "pool", *([n_pool] if n_pool else []))

    def loss_at(step: int) -> Tensor:
        rows = np.random.default_rng(step).integers(len(pool), size=recipe.batch)
        x = from_uint8(pool[rows]).to(device(), memory_format=torch.channels_last)
        with bf16():
            z = vae.encode(x).latents
            y = vae.decode(z + 0.04 * torch.randn_like(z)).sample
        z, y = z.float(), y.float()
        spread = z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()
        return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.02 * spread

    return train(vae, loss_at, recipe, scratch)
