"""Random diffusers pipelines with all parts of the real ones but a few thousand weights, and editors made from them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from emuedit.editor import checkpoint
from emuedit.editor.sampling import EditSampler
from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import ALL_TASKS

KINDS = ("toy", "sd15", "sd2", "sdxl")
D_V = 6
"""Width of a task embedding."""
SCHEDULE = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def build_base_model(kind: str) -> TextToImageModel:
    """A random base model; the same weights for the same kind."""
    torch.manual_seed(0)
    return TextToImageModel(build_pipeline(kind))


def build_editor_unet(base_model: TextToImageModel, tasks: Sequence[str] = ALL_TASKS) -> EditorUNet:
    """An editor in which, as after training, no weight is zero: picture, text and task all have an effect."""
    net = checkpoint.from_base_model(base_model, D_V, tasks)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=random)
    return net


def save_editor(kind: str, folder: Path, tasks: Sequence[str] = ALL_TASKS) -> Path:
    """Write a random editor in float32; returns the folder."""
    base_model = build_base_model(kind)
    checkpoint.save(build_editor_unet(base_model, tasks), base_model.pipeline, folder, torch.float32)
    return folder


def is_lock_free(sampler: EditSampler) -> bool:
    """Whether another thread than this one could edit now."""
    with ThreadPoolExecutor(1) as thread:
        is_free = thread.submit(sampler.lock.acquire, blocking=False).result()
        if is_free:
            thread.submit(sampler.lock.release).result()
    return is_free


def build_pipeline(kind: str) -> Any:
    """A StableDiffusionPipeline, or for 'sdxl' a StableDiffusionXLPipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    tokenizer, vae = build_tokenizer(), build_vae(kind)
    scheduler = DDIMScheduler(**SCHEDULE | ({} if kind in ("sd15", "sdxl") else ZERO_SNR))
    unet = build_unet(kind, vae.config.latent_channels)
    parts = {"vae": vae, "unet": unet, "tokenizer": tokenizer, "scheduler": scheduler}
    if kind == "sdxl":
        return StableDiffusionXLPipeline(
            **parts, text_encoder=build_text_encoder(tokenizer), text_encoder_2=build_text_encoder(tokenizer, 20),
            tokenizer_2=tokenizer, add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        **parts, text_encoder=build_text_encoder(tokenizer), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def build_tokenizer() -> Any:
    """A CLIP tokenizer of single letters, for texts of at most 16 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


def build_text_encoder(tokenizer: Any, projection_dim: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=projection_dim or 16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection_dim else CLIPTextModel)(config).eval()


def build_vae(kind: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny

    if kind == "toy":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=8,
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).eval()  # fmt: skip
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
        norm_num_groups=4, latent_channels=4, sample_size=16,
    ).eval()  # fmt: skip


def build_unet(kind: str, channels: int) -> Any:
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    by_kind: dict[str, dict[str, Any]] = {
        "toy": {"attention_head_dim": (1, 2), "cross_attention_dim": 16},
        "sd15": {"attention_head_dim": 2, "cross_attention_dim": 16},
        "sd2": {"attention_head_dim": (2, 4), "cross_attention_dim": 16, "use_linear_projection": True},
        "sdxl": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4), "cross_attention_dim": 32, "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 6 * 8 + 20,
        },
    }  # fmt: skip
    sizes = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
    return UNet2DConditionModel(**(sizes | blocks | by_kind[kind]), in_channels=channels, out_channels=channels).eval()
