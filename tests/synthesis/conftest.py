"""Small random U-Nets of the real shapes under a painter whose text is made of noise."""

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
DDIM = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip


class NoiseText(Painter):
    """Every caption has an embedding of its own, drawn from its letters."""

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        width, pooled = self.unet.config.cross_attention_dim, self.unet.config.addition_embed_type
        seeded = [torch.Generator().manual_seed(sum(7**i * ord(c) for i, c in enumerate(one)) % 2**31) for one in captions]
        hidden = torch.stack([torch.randn(5, width, generator=g) for g in seeded])
        return TextCondition(hidden, torch.stack([torch.randn(20, generator=g) for g in seeded]) if pooled else None)


def make_painter(kind: str, scheduler: Any = None) -> Painter:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    deep = kind == "sdxl"
    unet = UNet2DConditionModel(
        **SD, **KINDS[kind],
        down_block_types=(PLAIN, CROSS) if deep else (CROSS, PLAIN),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if deep else ("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    channels = KINDS[kind]["in_channels"]
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=channels,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ) if kind == "toy" else AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels, sample_size=16,
    )  # fmt: skip
    text = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=5))
    tokenizer = SimpleNamespace(model_max_length=5)
    parts = {"unet": unet, "vae": vae.eval(), "scheduler": scheduler or DDIMScheduler(**DDIM)}
    parts |= {"text_encoder": text, "tokenizer": tokenizer, "config": SimpleNamespace()}
    return NoiseText(SimpleNamespace(**parts, vae_scale_factor=2))


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
