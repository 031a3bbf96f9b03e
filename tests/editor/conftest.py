"""Tiny random text_to_image of the four shapes an editor is made from, and tiny editors made from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.editor import checkpoint
from emuedit.editor.sampling import Editor
from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextToImageModel

SHAPES = ("toy", "sd15", "sd2", "sdxl")
SCHEDULE = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def text_encoder(words: Any, projected: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=projected or 16, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(shape: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny

    if shape == "toy":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=8,
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).eval()  # fmt: skip
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
        norm_num_groups=4, latent_channels=4, sample_size=16,
    ).eval()  # fmt: skip


def unet(shape: str, channels: int) -> Any:
    from diffusers import UNet2DConditionModel

    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    special: dict[str, Any] = {
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
    return UNet2DConditionModel(**(sizes | kinds | special[shape]), in_channels=channels, out_channels=channels).eval()


def pipeline(shape: str) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    words, eyes = tokenizer(), vae(shape)
    schedule = DDIMScheduler(**SCHEDULE | ({} if shape in ("sd15", "sdxl") else ZERO_SNR))
    parts = {"vae": eyes, "unet": unet(shape, eyes.config.latent_channels), "tokenizer": words, "scheduler": schedule}
    if shape == "sdxl":
        return StableDiffusionXLPipeline(
            **parts, text_encoder=text_encoder(words), text_encoder_2=text_encoder(words, 20), tokenizer_2=words,
            add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        **parts, text_encoder=text_encoder(words), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def shaken(net: EditorUNet) -> EditorUNet:
    """As if it had been trained: no weight is zero any more, so that picture, text and task all matter."""
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=chance)
    return net


@pytest.fixture
def make_painter() -> Callable[[str], TextToImageModel]:
    """A random base_model of one of SHAPES."""

    def build(shape: str) -> TextToImageModel:
        torch.manual_seed(0)
        return TextToImageModel(pipeline(shape))

    return build


@pytest.fixture
def make_editor(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> Callable[..., Editor]:
    """An editor of one of SHAPES whose weights are all at work, saved to `tmp_path/editor` and loaded again."""
    from emuedit.editor import sampling

    def build(shape: str = "toy", dtype: torch.dtype = torch.float32) -> Editor:
        base_model = make_painter(shape)
        net = shaken(checkpoint.from_base_model(base_model, 6))
        checkpoint.save(net, base_model.pipeline, tmp_path / "editor", torch.float32)
        return sampling.load(str(tmp_path / "editor"), dtype=dtype)

    return build
