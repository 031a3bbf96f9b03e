"""The make of a Sam: its sizes, a builder, and the folder (config.json + model.safetensors) that keeps one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emuedit.models import model_sources

WEIGHTS = "model.safetensors"


def _whole(what: str, a: int, b: int) -> None:
    if a % b:
        raise ValueError(f"{what} must be whole, got {a} / {b}")


@dataclass(frozen=True)
class SamConfig:
    """Every size of a Sam. The defaults are those the three released ones share (segment_anything/build_sam.py)."""

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_attn_indexes: tuple[int, ...]  # encoder layers that attend to the whole picture
    image_size: int = 1024  # px, the square the longest side is resized to
    patch_size: int = 16  # px
    window_size: int = 14  # patches, of the other layers' attention
    mlp_ratio: float = 4.0
    prompt_embed_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    num_multimask_outputs: int = 3
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # of values in 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        _whole("image_size / patch_size", self.image_size, self.patch_size)
        _whole("encoder_width / encoder_heads", self.encoder_width, self.encoder_heads)
        _whole("prompt_embed_dim / (2 decoder_heads)", self.prompt_embed_dim, 2 * self.decoder_heads)
        _whole("prompt_embed_dim / 8", self.prompt_embed_dim, 8)


CONFIGS = {  #              width depth heads  global attention    (segment_anything/build_sam.py)
    "vit_b": SamConfig(      768,   12,   12, (2, 5, 8, 11)),
    "vit_l": SamConfig(     1024,   24,   16, (5, 11, 17, 23)),
    "vit_h": SamConfig(     1280,   32,   16, (7, 15, 23, 31)),
}  # fmt: skip


def build(config: SamConfig) -> Any:
    """A Sam of these sizes with fresh weights (segment_anything.modeling.Sam, a torch module)."""
    parts = model_sources.library("segment_anything.modeling")
    grid = config.image_size // config.patch_size
    return parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.encoder_width,
            depth=config.encoder_depth, num_heads=config.encoder_heads, mlp_ratio=config.mlp_ratio,
            out_chans=config.prompt_embed_dim, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True, window_size=config.window_size, global_attn_indexes=config.global_attn_indexes,
        ),
        prompt_encoder=parts.PromptEncoder(
            embed_dim=config.prompt_embed_dim, image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size), mask_in_chans=config.mask_in_chans,
        ),
        mask_decoder=parts.MaskDecoder(
            num_multimask_outputs=config.num_multimask_outputs,
            transformer=parts.TwoWayTransformer(
                depth=config.decoder_depth, embedding_dim=config.prompt_embed_dim,
                mlp_dim=config.decoder_mlp_dim, num_heads=config.decoder_heads,
            ),
            transformer_dim=config.prompt_embed_dim,
            iou_head_depth=config.iou_head_depth, iou_head_hidden_dim=config.iou_head_hidden_dim,
        ),
        pixel_mean=list(config.pixel_mean), pixel_std=list(config.pixel_std),
    )  # fmt: skip


def save(model: Any, config: SamConfig, folder: str | Path) -> None:
    """Write config.json and model.safetensors, the folder that `load` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_type": model_sources.SEGMENTER.accepts[0], **asdict(config)}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    model_sources.library("safetensors.torch").save_file(weights, folder / WEIGHTS)


def load(path: Path) -> tuple[Any, SamConfig]:
    """A Sam and its sizes from a folder of ours, or from a released checkpoint file (.pth or .safetensors)."""
    if path.is_file():
        weights = _read(path)
        config = _named(weights, path)
    elif path.is_dir():
        config = _config(model_sources.manifest(str(path), model_sources.SEGMENTER), path)
        weights = _read(path / WEIGHTS)
    else:
        raise FileNotFoundError(f"want {model_sources.SEGMENTER}, or a checkpoint file, got {str(path)!r}: not there")
    model = build(config)
    model.load_state_dict(weights)
    return model, config


def _read(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor]
    if path.suffix == ".safetensors":
        weights = model_sources.library("safetensors.torch").load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _named(weights: dict[str, torch.Tensor], path: Path) -> SamConfig:
    position = weights.get("image_encoder.pos_embed")  # [1, grid, grid, width]
    width = None if position is None else position.shape[-1]
    for config in CONFIGS.values():
        if config.encoder_width == width:
            return config
    known = ", ".join(f"{name} ({config.encoder_width})" for name, config in CONFIGS.items())
    raise ValueError(
        f"a checkpoint file must be one of {known} wide, got {path} with encoder width {width}; "
        "for another size give the folder with its config.json"
    )


def _config(found: dict[str, Any], path: Path) -> SamConfig:
    known = {field.name for field in fields(SamConfig)}
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    given.pop("model_type")
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{path}/config.json has unknown keys {unknown}; known are {sorted(known)}")
    try:
        return SamConfig(**given)
    except TypeError as error:
        raise ValueError(f"{path}/config.json is incomplete: {error}; known keys are {sorted(known)}") from error
