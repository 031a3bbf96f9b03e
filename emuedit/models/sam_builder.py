"""Build, save and load segment_anything's Sam: its config, and the folder of config.json and model.safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emuedit.models import model_files, model_sources

WEIGHTS = "model.safetensors"


def _check_divisible(ratio: str, a: int, b: int) -> None:
    if a % b:
        raise ValueError(f"{ratio} must be a whole number, got {a} / {b}")


@dataclass(frozen=True)
class SamConfig:
    """All sizes of a Sam. The defaults are common to the three released models (segment_anything/build_sam.py)."""

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_attn_indexes: tuple[int, ...]  # encoder layers that attend to the whole image
    image_size: int = 1024  # px, the length to which the longest side is resized
    patch_size: int = 16  # px
    window_size: int = 14  # patches, the attention window of the other layers
    mlp_ratio: float = 4.0
    prompt_embed_dim: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    num_multimask_outputs: int = 3
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # for pixel values in 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        _check_divisible("image_size / patch_size", self.image_size, self.patch_size)
        _check_divisible("encoder_width / encoder_heads", self.encoder_width, self.encoder_heads)
        _check_divisible("prompt_embed_dim / (2 decoder_heads)", self.prompt_embed_dim, 2 * self.decoder_heads)
        _check_divisible("prompt_embed_dim / 8", self.prompt_embed_dim, 8)


CONFIGS = {  #              width depth heads  global attention    (segment_anything/build_sam.py)
    "vit_b": SamConfig(      768,   12,   12, (2, 5, 8, 11)),
    "vit_l": SamConfig(     1024,   24,   16, (5, 11, 17, 23)),
    "vit_h": SamConfig(     1280,   32,   16, (7, 15, 23, 31)),
}  # fmt: skip


def build(config: SamConfig) -> Any:
    """Build a Sam of these sizes with random weights (segment_anything.modeling.Sam, a torch module)."""
    modeling = model_sources.import_library("segment_anything.modeling")
    grid = config.image_size // config.patch_size
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.encoder_width,
            depth=config.encoder_depth, num_heads=config.encoder_heads, mlp_ratio=config.mlp_ratio,
            out_chans=config.prompt_embed_dim, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True, window_size=config.window_size, global_attn_indexes=config.global_attn_indexes,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.prompt_embed_dim, image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size), mask_in_chans=config.mask_in_chans,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=config.num_multimask_outputs,
            transformer=modeling.TwoWayTransformer(
                depth=config.decoder_depth, embedding_dim=config.prompt_embed_dim,
                mlp_dim=config.decoder_mlp_dim, num_heads=config.decoder_heads,
            ),
            transformer_dim=config.prompt_embed_dim,
            iou_head_depth=config.iou_head_depth, iou_head_hidden_dim=config.iou_head_hidden_dim,
        ),
        pixel_mean=list(config.pixel_mean), pixel_std=list(config.pixel_std),
    )  # fmt: skip


def save(model: Any, config: SamConfig, folder: str | Path) -> None:
    """Write a folder for `load`: config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"model_type": model_sources.SEGMENTER.accepts[0], **asdict(config)}
    (folder / "config.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    model_sources.import_library("safetensors.torch").save_file(weights, folder / WEIGHTS)


def load(path: Path) -> tuple[Any, SamConfig]:
    """Load a Sam and its config from a folder written by `save`, or from a checkpoint file (.pth or .safetensors).

    Raises FileNotFoundError for a missing path and ValueError for a config or checkpoint of unknown sizes.
    """
    if path.is_file():
        weights = _read_weights(path)
        config = _config_of_checkpoint(weights, path)
    elif path.is_dir():
        config = _parse_config(model_sources.read_manifest(str(path), model_sources.SEGMENTER), path)
        weights = _read_weights(path / WEIGHTS)
    else:
        raise FileNotFoundError(f"want {model_sources.SEGMENTER}, or a checkpoint file, got {str(path)!r}, which does not exist")
    model = build(config)
    model.load_state_dict(weights)
    return model, config


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if problem := model_files.checkpoint_problem(path):
        raise model_files.ModelFileError(f"want a complete checkpoint, got {path}: {problem}; copy or download it again")
    weights: dict[str, torch.Tensor]
    if path.suffix == ".safetensors":
        weights = model_sources.import_library("safetensors.torch").load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _config_of_checkpoint(weights: dict[str, torch.Tensor], path: Path) -> SamConfig:
    """Choose the released config with the encoder width of the weights."""
    position = weights.get("image_encoder.pos_embed")  # [1, grid, grid, width]
    width = None if position is None else position.shape[-1]
    for config in CONFIGS.values():
        if config.encoder_width == width:
            return config
    widths = ", ".join(f"{name} ({config.encoder_width})" for name, config in CONFIGS.items())
    raise ValueError(
        f"the encoder width of a checkpoint file must be that of {widths}, got {path} with encoder width {width}; "
        "for another size give the folder with its config.json"
    )


def _parse_config(manifest: dict[str, Any], path: Path) -> SamConfig:
    """Convert config.json to a SamConfig; errors list unknown or missing keys."""
    known_keys = {field.name for field in fields(SamConfig)}
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in manifest.items()}
    values.pop("model_type")
    if unknown_keys := sorted(set(values) - known_keys):
        raise ValueError(f"{path}/config.json has unknown keys {unknown_keys}; known are {sorted(known_keys)}")
    try:
        return SamConfig(**values)
    except TypeError as error:
        raise ValueError(f"{path}/config.json is incomplete: {error}; known keys are {sorted(known_keys)}") from error
