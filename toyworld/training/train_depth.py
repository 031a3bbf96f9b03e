"""Training of the depth estimator: a small Depth Anything that predicts disparity in any weather and style."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from emuedit.models.image_tensors import from_uint8
from toyworld.scenes.palette import SIZE
from toyworld.training.render_cache import N_SCENES, cache_folder, load_scenes
from toyworld.training.train_detector import jitter_colours
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=1300, batch=24, lr=1.5e-3, warmup_steps=100, decay_share=0.5, ema_decay=0.995)
WIDTH = 128


def build() -> DepthAnythingForDepthEstimation:
    """A model with random weights: a ViT of 4 layers with 8 px patches, which all feed the neck; 1.3 M parameters."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=4, image_size=SIZE, patch_size=8,
        layerscale_value=1.0, out_features=stages, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=WIDTH, neck_hidden_sizes=[32, 48, 64, 96],
        fusion_hidden_size=40, head_hidden_size=16,
    )  # fmt: skip
    config._attn_implementation = backbone._attn_implementation = "eager"  # faster training on a CPU than fused attention
    model = DepthAnythingForDepthEstimation(config)
    for layer in (*model.neck.modules(), *model.head.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # transformers' initial standard deviation of 0.02 makes the signal vanish in narrow layers
            layer.reset_parameters()
    nn.init.constant_(model.head.conv3.bias, 0.2)  # so that the last ReLU is active initially
    return model


def save(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """Write a transformers folder: weights, config and image processor."""
    model.save_pretrained(folder)
    half, size = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    DPTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(folder)


def loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 and squared error of disparity [B, H, W], and L1 of the differences between neighbouring pixels (ours).

    Objects cover an eighth of an image. With only L1 the model may ignore them; the squared error prevents that.
    The differences between neighbours keep edges sharp.
    """
    error = predicted - target
    gradient_error = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
    return error.abs().mean() + 5 * error.square().mean() + 0.5 * gradient_error


def run(scratch: Path, recipe: Recipe = RECIPE, n_scenes: int = N_SCENES) -> Path:
    """Train the model and return the folder it is saved in."""
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    _, truth = load_scenes(cache_folder(scratch), n_scenes)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(len(truth.images), size=recipe.batch))
        x = jitter_colours(from_uint8(truth.images[rows]).to(device())).to(memory_format=torch.channels_last)
        with autocast():
            predicted = model(x).predicted_depth
        return loss(predicted.float(), torch.from_numpy(truth.disparity[rows]).to(device()).float())

    train(model, loss_at, recipe, scratch)
    save(model, scratch / "model")
    return scratch / "model"
