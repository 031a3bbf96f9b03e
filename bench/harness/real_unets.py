"""The U-Nets of Stable Diffusion 1.5 and XL from their published configs, without weights."""

from typing import Any

import torch

from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.editor.unet import EditorUNet, extend_unet
from emuedit.models.model_sources import import_library

D_V = 32
"""Width of a task embedding."""
FACTOR = 8
"""Pixels per latent cell and side."""
N_PARAMETERS = {"sd15": 859_520_964, "sdxl": 2_567_463_684}
"""Name of a base model -> number of parameters of its U-Net."""
CONFIGS: dict[str, dict[str, Any]] = {
    # unet/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5; other values are diffusers' defaults
    "sd15": {
        "sample_size": 64,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    # unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
    "sdxl": {
        "sample_size": 128,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""Name of a base model -> config of its U-Net."""


def build_unet(name: str, device: str = "meta", **changes: Any) -> Any:
    """A base model's U-Net, with changes of its config; on the meta device without data, elsewhere with random weights."""
    with torch.device(device):
        return import_library("diffusers").UNet2DConditionModel(**(CONFIGS[name] | changes))


def build_editor(name: str, device: str = "meta", **changes: Any) -> EditorUNet:
    """An editor with a base model's architecture and a change-mask head."""
    with torch.device(device):
        unet = extend_unet(build_unet(name, device, **changes), D_V)
        return EditorUNet(unet, TaskEmbedding(D_V, unet.config.cross_attention_dim), FACTOR)
