from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler

from emuedit.models import text_to_image

# Euler's schedulers pass a tensor to numpy, whose __array__ has the signature from before numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SD = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
SCHEDULER = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 1,
}  # fmt: skip


def text_encoder(tokenizer: Any, projected: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=projected or 16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def kl_vae(**config: Any) -> Any:
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    return AutoencoderKL(**kinds, **sizes, **config).eval()


def tiny_vae() -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=6,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.7,
    ).eval()  # fmt: skip


def sd_pipeline(tokenizer: Any, vae: Any, **scheduler: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **SD, in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    ).eval()  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(tokenizer), tokenizer=tokenizer, unet=unet, safety_checker=None,
        scheduler=DDIMScheduler(**(SCHEDULER | scheduler)), feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def xl_pipeline(tokenizer: Any, vae: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **SD, in_channels=4, out_channels=4, cross_attention_dim=32, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20, transformer_layers_per_block=(1, 2),
    ).eval()  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=text_encoder(tokenizer), text_encoder_2=text_encoder(tokenizer, 20), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["sd15-kl", "toy-tiny", "sdxl-kl"])
def saved(request: pytest.FixtureRequest, clip_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> tuple[Any, str]:
    """A pipeline, and the folder that its save_pretrained wrote."""
    torch.manual_seed(1)
    tokenizer = clip_tokenizer(16)
    pipeline = {
        "sd15-kl": lambda: sd_pipeline(tokenizer, kl_vae()),
        "toy-tiny": lambda: sd_pipeline(tokenizer, tiny_vae()),
        "sdxl-kl": lambda: xl_pipeline(tokenizer, kl_vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 2.0, 1.0, 1.5])),
    }[request.param]()
    pipeline.set_progress_bar_config(disable=True)
    folder = str(tmp_path_factory.mktemp(request.param))
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "negative"), [(3.0, ""), (3.0, "grass"), (1.0, "")])
def test_generate_equals_the_pipelines_call(saved: tuple[Any, str], guidance: float, negative: str) -> None:
    pipeline, folder = saved
    ours = text_to_image.load(folder)
    seeds = [3, 4]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    captions = ["a small red circle", "two blue stars at night"]
    images = ours.generate(captions, seeds, steps=4, guidance_scale=guidance, negative=negative)
    expected = pipeline(
        captions, num_inference_steps=4, guidance_scale=guidance, output_type="pt", latents=ours.initial_noise(generators),
        negative_prompt=[negative] * 2 if negative else None,
    ).images  # fmt: skip
    assert images.shape == (2, 3, 16, 16)
    assert images.std() > 0.01  # not a flat image
    torch.testing.assert_close(images, expected * 2 - 1, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_and_not_on_the_batch(saved: tuple[Any, str]) -> None:
    ours = text_to_image.load(saved[1])
    captions = ["a red circle", "blue stars", "a red circle"]
    batch = ours.generate(captions, [7, 8, 9], steps=3, guidance_scale=2.0)
    single = ours.generate(captions[1:2], [8], steps=3, guidance_scale=2.0)
    swapped = ours.generate([captions[1], captions[0]], [8, 7], steps=3, guidance_scale=2.0)
    torch.testing.assert_close(single[0], batch[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(swapped, batch[[1, 0]], rtol=0, atol=1e-5)
    assert (batch[0] - batch[2]).abs().max() > 1e-3  # same caption, another seed


def test_a_stochastic_scheduler_uses_one_generator_per_sample(clip_tokenizer: Callable[..., Any]) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pipeline = sd_pipeline(clip_tokenizer(16), tiny_vae())
    pipeline.scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    ours = text_to_image.TextToImageModel(pipeline)
    batch = ours.generate(["a", "b"], [1, 2], steps=3, guidance_scale=2.0)
    torch.testing.assert_close(ours.generate(["b"], [2], steps=3, guidance_scale=2.0)[0], batch[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_encode_and_decode_follow_the_vae(saved: tuple[Any, str], two_images: torch.Tensor) -> None:
    pipeline, folder = saved
    ours, vae = text_to_image.load(folder), pipeline.vae
    z = ours.encode(two_images)
    assert z.shape == (2, ours.channels, 20, 28)
    with torch.no_grad():
        if hasattr(vae.encode(two_images), "latents"):
            raw = vae.encode(two_images).latents
            expected = raw * 0.7
        else:
            raw = vae.encode(two_images).latent_dist.mean
            expected = raw * vae.config.scaling_factor
            if vae.config.latents_mean is not None:  # as in diffusers' SDXL img2img pipeline
                mean, std = (torch.tensor(x).view(1, 4, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
                expected = (raw - mean) * vae.config.scaling_factor / std
        image = vae.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.decode(z), image, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_generate_in_another_size(saved: tuple[Any, str]) -> None:
    ours = text_to_image.load(saved[1])
    assert ours.generate(["a star"], [0], steps=2, guidance_scale=1.0, size=(16, 24)).shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match="multiples of 2 px, got 15 x 24"):
        ours.generate(["a star"], [0], steps=2, guidance_scale=1.0, size=(15, 24))


@pytest.mark.slow
def test_text_conditions(saved: tuple[Any, str]) -> None:
    ours = text_to_image.load(saved[1])
    text = ours.encode_text(["a red circle", "a star"])
    assert text.hidden.shape[:2] == (2, 16)
    assert (text.pooled is not None) == ("XL" in type(saved[0]).__name__)
    joined = text_to_image.TextCondition.cat(text, ours.null_text(3))
    assert len(joined) == 5
    assert joined.pooled is None or joined.pooled.shape == (5, 20)


@pytest.mark.slow
def test_texts_are_encoded_as_by_the_pipeline_and_those_that_are_cut_are_known(saved: tuple[Any, str]) -> None:
    pipeline, folder = saved
    ours = text_to_image.load(folder)
    texts = ["a red circle", "a small red circle and a big blue star in the upper part of it, at night", "", "a red circle"]
    for _ in range(2):  # the second time from memory
        text = ours.encode_text(texts)
        want = pipeline.encode_prompt(texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        torch.testing.assert_close(text.hidden, want[0], rtol=0, atol=1e-6)
        if text.pooled is not None:
            torch.testing.assert_close(text.pooled, want[2], rtol=0, atol=1e-6)
    assert [ours.is_truncated(text) for text in texts] == [False, True, False, False]


def test_parts_that_do_not_fit_are_an_error(clip_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="one seed per caption, got 1 captions and 2 seeds"):
        text_to_image.TextToImageModel(sd_pipeline(clip_tokenizer(16), tiny_vae())).generate(["a"], [1, 2], 2, 1.0)
    pipeline = sd_pipeline(clip_tokenizer(16), tiny_vae())
    pipeline.tokenizer.model_max_length = 77
    with pytest.raises(ValueError, match="at most the text encoder's 16 positions, got 77"):
        text_to_image.TextToImageModel(pipeline)
    pipeline = sd_pipeline(clip_tokenizer(16), tiny_vae())
    pipeline.scheduler = EDMEulerScheduler()  # as of Playground v2.5
    with pytest.raises(ValueError, match=r"got EDMEulerScheduler .*use another base model"):
        text_to_image.TextToImageModel(pipeline)
    pipeline = sd_pipeline(clip_tokenizer(16), tiny_vae())
    pipeline.vae = kl_vae()
    with pytest.raises(ValueError, match="must have the VAE's 4 input channels, got 6"):
        text_to_image.TextToImageModel(pipeline)


@pytest.mark.slow
def test_float16_keeps_a_vae_that_would_overflow_in_float32(saved: tuple[Any, str], tmp_path: Path) -> None:
    ours = text_to_image.load(saved[1], dtype=torch.float16)
    assert ours.unet.dtype == torch.float16
    assert ours.vae.dtype == (torch.float32 if ours.vae.config.force_upcast else torch.float16)
