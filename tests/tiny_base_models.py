"""Tiny base models of every kind, with a fake text encoder."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from emuedit.models.text_to_image import TextCondition, TextToImageModel

UNET: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UNET_BY_KIND: dict[str, dict[str, Any]] = {
    "toy": {"cross_attention_dim": 16, "attention_head_dim": 2, "in_channels": 6, "out_channels": 6},
    "sd15": {"cross_attention_dim": 16, "attention_head_dim": 2, "in_channels": 4, "out_channels": 4},
    "sdxl": {
        "cross_attention_dim": 32, "attention_head_dim": (2, 4), "in_channels": 4, "out_channels": 4,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20, "transformer_layers_per_block": (1, 2),
    },
}  # fmt: skip
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
DDIM = {"clip_sample": False, "timestep_spacing": "trailing"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
LENGTH = 12


class WordTokenizer:
    """One token per letter for words in capitals, else one per word. Token 0 is the start, token 1 the end."""

    model_max_length = LENGTH

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [2 + hash_text(part) for word in text.split() for part in (word if word.isupper() else [word])]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def hash_text(text: str) -> int:
    return sum(7**i * ord(c) for i, c in enumerate(text)) % 2**20


class NoiseTextModel(TextToImageModel):
    """A base model whose embedding of a token is seeded noise, plus a part of the mean over the tokens so far."""

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        width, pooled = self.unet.config.cross_attention_dim, self.unet.config.addition_embed_type
        token_rows = [(self.tokenizer(caption)["input_ids"] + [1] * LENGTH)[:LENGTH] for caption in captions]
        noise = [[torch.randn(width, generator=torch.Generator().manual_seed(token)) for token in row] for row in token_rows]
        hidden = torch.stack([torch.stack(row) for row in noise])  # [B, L, D]
        hidden = hidden + 0.3 * hidden.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
        generators = [torch.Generator().manual_seed(hash_text(caption)) for caption in captions]
        return TextCondition(hidden, torch.stack([torch.randn(20, generator=g) for g in generators]) if pooled else None)


def build_base_model(kind: str, scheduler: Any = None) -> TextToImageModel:
    """A random base model of a kind of UNET_BY_KIND; `scheduler` None is DDIM, for 'toy' with zero terminal SNR."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    attention_in_deep_blocks = kind == "sdxl"
    unet = UNet2DConditionModel(
        **UNET, **UNET_BY_KIND[kind],
        down_block_types=(PLAIN, CROSS) if attention_in_deep_blocks else (CROSS, PLAIN),
        up_block_types=(
            ("CrossAttnUpBlock2D", "UpBlock2D") if attention_in_deep_blocks else ("UpBlock2D", "CrossAttnUpBlock2D")
        ),
    ).eval()  # fmt: skip
    channels = UNET_BY_KIND[kind]["in_channels"]
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=channels,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ) if kind == "toy" else AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels, sample_size=16,
    )  # fmt: skip
    text_encoder = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LENGTH))
    ddim = DDIMScheduler(**SCHEDULE, **DDIM, **(ZERO_SNR if kind == "toy" else {}))
    parts = {"unet": unet, "vae": vae.eval(), "scheduler": scheduler or ddim}
    parts |= {"text_encoder": text_encoder, "tokenizer": WordTokenizer(), "config": SimpleNamespace()}
    return NoiseTextModel(SimpleNamespace(**parts, vae_scale_factor=2))
