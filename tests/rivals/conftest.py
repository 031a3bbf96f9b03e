"""Small random U-Nets of the real shapes under a painter whose text is made of noise, and whose tokens are words."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models.painter import Painter, TextCondition

SD = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
KINDS: dict[str, dict[str, Any]] = {
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
TOY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
LENGTH = 12


class WordTokenizer:
    """A token a letter for words of capitals, else a token a word; 0 starts and 1 ends."""

    model_max_length = LENGTH

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [2 + hash_of(part) for word in text.split() for part in (word if word.isupper() else [word])]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def hash_of(text: str) -> int:
    return sum(7**i * ord(c) for i, c in enumerate(text)) % 2**20


class NoiseText(Painter):
    """Every token has an embedding of its own, and leans on those before it."""

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        width, pooled = self.unet.config.cross_attention_dim, self.unet.config.addition_embed_type
        rows = [(self.tokenizer(one)["input_ids"] + [1] * LENGTH)[:LENGTH] for one in captions]
        noise = [[torch.randn(width, generator=torch.Generator().manual_seed(token)) for token in row] for row in rows]
        hidden = torch.stack([torch.stack(row) for row in noise])
        hidden = hidden + 0.3 * hidden.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
        seeded = [torch.Generator().manual_seed(hash_of(one)) for one in captions]
        return TextCondition(hidden, torch.stack([torch.randn(20, generator=g) for g in seeded]) if pooled else None)


def make_painter(kind: str, scheduler: Any = None) -> Painter:
    from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    deep = kind == "sdxl"
    unet = UNet2DConditionModel(
        **SD, **KINDS[kind],
        down_block_types=(PLAIN, CROSS) if deep else (CROSS, PLAIN),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if deep else ("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        latent_channels=KINDS[kind]["in_channels"], num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    text = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LENGTH))
    own = DDIMScheduler(**SCHEDULE, **DDIM, **(TOY if kind == "toy" else {}))
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler or own, "text_encoder": text, "tokenizer": WordTokenizer()}
    return NoiseText(SimpleNamespace(**parts, config=SimpleNamespace(), vae_scale_factor=2))


@pytest.fixture(scope="session", params=list(KINDS))
def painter(request: pytest.FixtureRequest) -> Painter:
    return make_painter(request.param)


@pytest.fixture(scope="session")
def painted_by() -> Any:
    """Builds a painter of a kind (toy, sd15, sdxl) with another scheduler."""
    return make_painter


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
