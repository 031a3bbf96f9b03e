"""The training task of `bench/train.py`: a workspace with a random base model of a real architecture and pairs of its size.

Both trainers read the same folder: `base_model/` is a StableDiffusionPipeline, `data/` holds pairs as the stages publish them.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard
from harness.command import ROOT
from harness.real_unets import CONFIGS
from toyworld.edits.exact_dataset import build_pairs
from toyworld.edits.exact_edits import build_edits

N_PAIRS = 64
TOKENIZER = ROOT / "toyworld" / "weights" / "base_model" / "tokenizer"
DDIM: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An architecture and its training resolution."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_width: int
    text_layers: int
    size_px: int
    batch: int


_TOY_UNET: dict[str, Any] = {
    "block_out_channels": (64, 128, 192), "layers_per_block": 1, "cross_attention_dim": 160, "attention_head_dim": (1, 2, 4),
    "norm_num_groups": 16, "sample_size": 16, "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
_SD15_UNET = CONFIGS["sd15"]
_KL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_SMALL_VAE = _KL_VAE | {
    "block_out_channels": (32, 64, 64), "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
SHAPES = {
    "toy": Shape(_TOY_UNET, _SMALL_VAE, 160, 4, 64, 16),
    "sd15-quarter": Shape(
        _SD15_UNET | {"block_out_channels": (96, 160, 320, 320), "cross_attention_dim": 192}, _SMALL_VAE, 192, 4, 64, 8
    ),
    "sd15-256": Shape(_SD15_UNET, _KL_VAE, 768, 12, 256, 32),
    "sd15-512": Shape(_SD15_UNET, _KL_VAE, 768, 12, 512, 8),
}
"""`toy` is the toy base model's U-Net with four latent channels, as required by the published script; `sd15-quarter` has SD1.5's
blocks at about a quarter of their width; the others are SD1.5, for a GPU."""


def write_workspace(root: Path, shape: Shape, device: str) -> None:
    """Write base model, pairs and params. Random weights have the same cost as trained ones."""
    shutil.rmtree(root, ignore_errors=True)
    build_base_model(shape, device).save_pretrained(root / "base_model")
    write_pairs(root, shape.size_px)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["world"]["base_model"] = "base_model"
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.copy2(ROOT / "dvc.yaml", root / "dvc.yaml")


def build_base_model(shape: Shape, device: str) -> Any:
    """A StableDiffusionPipeline of this shape with random weights, created on `device`, which takes seconds for a large one."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape.text_width, intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers, num_attention_heads=shape.text_width // 32,
        max_position_embeddings=tokenizer.model_max_length, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNet2DConditionModel(**shape.unet), "vae": AutoencoderKL(**shape.vae), "text_encoder": CLIPTextModel(text),
        }  # fmt: skip
    return StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=DDIMScheduler(**DDIM), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def write_pairs(root: Path, size_px: int) -> None:
    """Publish exact pairs of the toy world, upscaled to `size_px`."""
    pairs = [_enlarge(pair, size_px) for pair in build_pairs(build_edits("local", "train", 0, N_PAIRS))]
    verdicts = [Verdict(pair.id, kept=True, task=pair.task, reasons=(), filters={}, scores={}) for pair in pairs]
    for stage, rows, kind in (("pairs", pairs, Pair), ("dataset", verdicts, Verdict)):
        folder = scratch_folder(root, stage, "bench")
        write_shard(folder / "shard-00000.parquet", rows, kind)  # type: ignore[type-var]
        publish(folder, root / "data" / stage, stage, {}, {"kept": len(rows)})


def _enlarge(pair: Pair, size_px: int) -> Pair:
    return replace(pair, source=_resize(pair.source, size_px), target=_resize(pair.target, size_px))


def _resize(png: bytes, size_px: int) -> bytes:
    image = Image.open(io.BytesIO(png))
    if image.size == (size_px, size_px):
        return png
    stream = io.BytesIO()
    image.resize((size_px, size_px), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()
