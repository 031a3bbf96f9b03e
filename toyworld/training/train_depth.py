"""The depth judge: a small Depth Anything that gives the renderer's disparity, whatever weather or style lies over it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from emuedit.models.image_tensors import from_uint8
from toyworld.scenes.palette import SIZE
from toyworld.training.render_cache import rendered
from toyworld.training.train_detector import jittered
from toyworld.training.training_run import Recipe, bf16, device, train

RECIPE = Recipe(steps=1300, batch=24, lr=1.5e-3, warmup_steps=100, decay_share=0.5, ema_decay=0.995)
WIDTH = 128


def build() -> DepthAnythingForDepthEstimation:
    """Random weights: a ViT of 4 layers and patches of 8 px, every layer read by the neck; 1.3 M parameters."""
    names = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=4, image_size=SIZE, patch_size=8,
        layerscale_value=1.0, out_features=names, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=WIDTH, neck_hidden_sizes=[32, 48, 64, 96],
        fusion_hidden_size=40, head_hidden_size=16,
    )  # fmt: skip
    config._attn_implementation = backbone._attn_implementation = "eager"  # trains faster on a CPU than the fused one
    model = DepthAnythingForDepthEstimation(config)
    for part in (*model.neck.modules(), *model.head.modules()):
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):  # transformers' spread of 0.02 is a dead signal in narrow layers
            part.reset_parameters()
    nn.init.constant_(model.head.conv3.bias, 0.2)  # the last ReLU must not start dead
    return model


def save(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """The transformers folder: weights, config, image processor."""
    model.save_pretrained(folder)
    half, side = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    DPTImageProcessor(size=side, image_mean=half, image_std=half).save_pretrained(folder)


def loss(got: Tensor, want: Tensor) -> Tensor:
    """L1 and squared error of disparity [B, H, W], and L1 of its differences between neighbours, which keeps edges sharp.

    L1 alone is content with a world without objects, which cover an eighth of a picture; the square is not.
    """
    apart = got - want
    steps = apart.diff(dim=1).abs().mean() + apart.diff(dim=2).abs().mean()
    return apart.abs().mean() + 5 * apart.square().mean() + 0.5 * steps


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> Path:
    """Train it and return the folder it was saved in."""
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    _, known = rendered(scratch.parent / "pool", *([n_pool] if n_pool else []))

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(len(known.images), size=recipe.batch))
        x = jittered(from_uint8(known.images[rows]).to(device())).to(memory_format=torch.channels_last)
        with bf16():
            got = model(x).predicted_depth
        return loss(got.float(), torch.from_numpy(known.disparity[rows]).to(device()).float())

    train(model, loss_at, recipe, scratch)
    save(model, scratch / "model")
    return scratch / "model"
