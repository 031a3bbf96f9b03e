"""An edit that changes nothing returns its input bit for bit, whatever the autoencoder does to an image.

Small random autoencoders with the blocks and the latent statistics of published ones.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emuedit import Editor, EditSettings
from emuedit.editor import checkpoint
from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.editor.sampling import EditSampler
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextToImageModel
from tests.editor.tiny_pipelines import D_V, build_pipeline, build_unet

SETTINGS = EditSettings(steps=2, image_guidance_scale=1.0, guidance_scale=1.0)
KL: dict[str, dict[str, Any]] = {
    "sd15": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True},
    "sdxl, statistics per channel": {
        "latent_channels": 4, "scaling_factor": 0.5, "latents_mean": [-1.6, 1.2, 0.1, -0.4], "latents_std": [8.4, 5.9, 5.5, 4.6],
    },
    "sd3": {
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "flux": {
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}  # fmt: skip
"""`vae/config.json` of the models; the second SDXL case has statistics as in playground-v2.5."""
TINY: dict[str, dict[str, Any]] = {"taesd": {"latent_channels": 4}, "taesd3": {"latent_channels": 16, "shift_factor": 0.0}}


def build_vae(name: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(1)
    if name in TINY:
        widths, blocks = (8,) * 4, (1,) * 4
        return AutoencoderTiny(
            encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks,
            num_decoder_blocks=blocks, **TINY[name],
        )  # fmt: skip
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 16, 16),
        layers_per_block=2, norm_num_groups=4, sample_size=64, **KL[name],
    )  # fmt: skip


class NoChangeNetwork(torch.nn.Module):
    """Predicts noise, and that nothing changes."""

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.table = sampler.net.table

    def forward(self, z_t: Tensor, *conditions: Any) -> Prediction:
        return Prediction(torch.randn_like(z_t), torch.full_like(z_t[:, :1], -50.0))


@pytest.fixture
def make_no_op_editor() -> Callable[[str], Editor]:
    def make(name: str) -> Editor:
        vae = build_vae(name).eval().requires_grad_(False)
        pipeline = build_pipeline("sd15")
        pipeline.register_modules(vae=vae, unet=build_unet("sd15", vae.config.latent_channels))
        pipeline.vae_scale_factor = 8
        net = checkpoint.from_base_model(TextToImageModel(pipeline), D_V)
        parts = {part: getattr(pipeline, part) for part in ("text_encoder", "tokenizer", "scheduler")}
        frozen = FrozenParts(EmuEditPipeline(vae=vae, unet=net.unet, task_embedding=net.table, **parts))
        sampler = EditSampler(net.eval(), frozen, "0" * 16)
        sampler.net = NoChangeNetwork(sampler)  # type: ignore[assignment]
        return Editor(sampler, None, SETTINGS)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KL, *TINY])
def test_a_no_op_returns_the_image_bit_for_bit(name: str, make_no_op_editor: Callable[[str], Editor]) -> None:
    """For tasks of an object and of the background, for images of the editor's size, of odd sides, and larger ones."""
    editor, random = make_no_op_editor(name), np.random.default_rng(0)
    for height, width in ((32, 48), (21, 35), (150, 90)):
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        for task in ("local", "background"):
            (turn,) = editor.edit_turns(image, ["a"], [task])
            np.testing.assert_array_equal(turn.pixels, image)
            assert turn.changed.box is None
    before = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parts = editor.sampler.parts
    error = (parts.decode(parts.encode(before)) - before).abs().mean()
    assert error > 0.2, "the autoencoder itself changes the image"
