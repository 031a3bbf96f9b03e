"""Pairs per second and memory of base models with real architectures. Random weights, soft masks.

`uv run python bench/sizes.py [--quick]` writes `bench/results/sizes.json`; its last line is the same JSON.

On a GPU the networks have the sizes of Stable Diffusion 1.5 and XL and run in bfloat16 at 512 px. On a CPU they are a
tenth as wide, at 64 px, with few steps, in one thread, in float32 or bfloat16, whichever is faster there.
`shared_sources` samples each source once for all its candidates, `separate_sources` once for every candidate, and
`no_mask` shares sources, but the candidates are unconstrained (M = 1). The images are noise; the benchmark measures the cost of
the same code at these sizes. Peak memory is of the GPU, or on a CPU of the process so far.
"""

import logging
import resource
import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from harness import command, real_unets
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm

from emuedit.core import soft_mask
from emuedit.models.model_sources import import_library
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from emuedit.synthesis.sampler import Sampler
from emuedit.synthesis.variant_plan import Variant

ARCHITECTURES = ("sd15", "sdxl")
REAL_WIDTH = 320
"""Channels of the first level of both U-Nets."""
GUIDANCE_SCALE = 3.0


@dataclass(frozen=True)
class Scale:
    """Sizes of a benchmark run."""

    width: int  # channels of the U-Net's first level
    px: int
    steps: int
    captions: int
    candidates: int  # of each caption
    rounds: int  # timed rounds; the median is used


@dataclass(frozen=True)
class Mode:
    """How the candidates are generated."""

    use_mask: bool = True
    share_sources: bool = True


GPU_SCALE = Scale(width=REAL_WIDTH, px=512, steps=20, captions=4, candidates=3, rounds=3)
CPU_SCALE = Scale(width=32, px=64, steps=4, captions=4, candidates=3, rounds=5)
MODES = {"shared_sources": Mode(), "separate_sources": Mode(share_sources=False), "no_mask": Mode(use_mask=False)}


def random_base_model(architecture: str, scale: Scale, device: str, dtype: torch.dtype) -> TextToImageModel:
    """A base model with random weights in the shape of Stable Diffusion 1.5 or XL, `scale.width` / 320 as wide."""
    diffusers = import_library("diffusers")
    tokenizer, is_real_size = letter_tokenizer(), scale.width == REAL_WIDTH
    first_width, second_width = scaled_width(768, scale), scaled_width(1280, scale)  # of the text encoders
    shared: dict[str, Any] = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=[scaled_width(channels, scale) for channels in (128, 256, 512, 512)], layers_per_block=2,
            latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            sample_size=scale.px, norm_num_groups=32 if is_real_size else 8,
        ),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        ),
        "tokenizer": tokenizer,
        "text_encoder": random_text_encoder(tokenizer, first_width, n_layers=12, n_heads=12 if is_real_size else 1),
    }  # fmt: skip
    if architecture == "sd15":
        unet = random_unet("sd15", scale, first_width)
        without_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(unet=unet, **shared, **without_checker)
    else:
        unet = random_unet("sdxl", scale, first_width + second_width, pooled_width=second_width)
        n_layers, n_heads = (32, 20) if is_real_size else (4, 1)
        second = random_text_encoder(tokenizer, second_width, n_layers, n_heads, with_projection=True)
        pipeline = diffusers.StableDiffusionXLPipeline(
            unet=unet, **shared, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    pipeline.to(device, dtype if device != "cpu" else torch.float32)
    base_model = TextToImageModel(pipeline)
    for part in (base_model.unet, base_model.vae, *base_model.text_encoders):
        part.requires_grad_(False).eval()
    return base_model


def random_unet(architecture: str, scale: Scale, text_width: int, pooled_width: int = 0) -> Any:
    """The U-Net of Stable Diffusion 1.5 or XL at this scale; `pooled_width`: of XL's pooled text embedding."""
    config = real_unets.CONFIGS[architecture]
    changes: dict[str, Any] = {
        "sample_size": scale.px // real_unets.FACTOR,
        "cross_attention_dim": text_width,
        "block_out_channels": tuple(scaled_width(channels, scale) for channels in config["block_out_channels"]),
    }
    if architecture == "sdxl":
        changes["projection_class_embeddings_input_dim"] = pooled_width + 6 * config["addition_time_embed_dim"]
        if scale.width != REAL_WIDTH:
            changes["attention_head_dim"] = (1, 2, 4)
    return real_unets.build_unet(architecture, "cpu", **changes)


def random_text_encoder(tokenizer: Any, width: int, n_layers: int, n_heads: int, with_projection: bool = False) -> Any:
    """A CLIP text encoder."""
    transformers = import_library("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=n_layers,
        num_attention_heads=n_heads, projection_dim=width, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel)(config)


def letter_tokenizer() -> Any:
    """CLIP's tokenizer with one token per letter, to avoid a download."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return import_library("transformers").CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def scaled_width(channels: int, scale: Scale) -> int:
    """The number of channels at this scale: a multiple of 8."""
    return max(8, channels * scale.width // REAL_WIDTH // 8 * 8)


def build_variants(scale: Scale, mode: Mode) -> list[Variant]:
    """All candidates: another word in the caption, inside a soft disc in the centre."""
    y, x = torch.meshgrid(torch.arange(scale.px), torch.arange(scale.px), indexing="ij")
    P = ((y - scale.px / 2) ** 2 + (x - scale.px / 2) ** 2 < (scale.px / 4) ** 2).float()[None]
    M, self_fraction, blend_to = torch.ones_like(P), 0.0, 0.0
    if mode.use_mask:
        M = soft_mask.soft_mask(P[None], 0.0, 1.0, 0.0, scale.px // 16, scale.px / 64)[0]
        self_fraction, blend_to = 0.2, 1.0
    caption_of = [g for g in range(scale.captions) for _ in range(scale.candidates)]
    source_rows = caption_of if mode.share_sources else range(len(caption_of))
    return [
        Variant(row, f"a cat {g}", M, 0.0, self_fraction, 0.0, blend_to, GUIDANCE_SCALE)
        for row, g in zip(source_rows, caption_of, strict=True)
    ]


def time_round(sampler: Sampler, scale: Scale, mode: Mode) -> float:
    """Seconds to sample all sources and candidates and to decode them."""
    sources_per_caption = 1 if mode.share_sources else scale.candidates
    captions = [f"a dog {g}" for g in range(scale.captions) for _ in range(sources_per_caption)]
    start = time.perf_counter()
    trajectory = sampler.sources(captions, list(range(len(captions))), GUIDANCE_SCALE)
    edited = sampler.variants(trajectory, build_variants(scale, mode))
    for z in (*trajectory.z[-1].split(1), *edited.split(1)):
        sampler.base_model.decode(z)
    if edited.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(architecture: str, scale: Scale, runtime: Runtime) -> dict[str, Any]:
    """Pairs per second in every mode, measured alternately, and the peak memory."""
    torch.manual_seed(0)
    base_model = random_base_model(architecture, scale, runtime.device, runtime.torch_dtype)
    sampler = Sampler(base_model, scale.steps, runtime.torch_dtype)
    on_gpu = runtime.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(1 + scale.rounds):  # the first one is a warm-up
        for name, mode in MODES.items():
            seconds[name].append(time_round(sampler, scale, mode))
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    n_pairs = scale.captions * scale.candidates
    return {
        "parameters_unet": sum(parameter.numel() for parameter in base_model.unet.parameters()),
        "pairs_per_second": {name: round(n_pairs / value, 3) for name, value in median.items()},
        "shared_over_separate_sources": round(median["separate_sources"] / median["shared_sources"], 2),
        "peak_memory_gib": round(peak / 2**30, 2),
    }


def main() -> None:
    """Measure, write, print."""
    parser = command.argument_parser(__doc__, quick="few steps and candidates, one round")
    args = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # two threads would synchronise at every small operator
    runtime = Runtime.choose()
    scale = GPU_SCALE if runtime.device == "cuda" else CPU_SCALE
    if args.quick:
        scale = replace(scale, steps=2, captions=2, candidates=2, rounds=1)
    figures: dict[str, Any] = {"device": runtime.device, "dtype": runtime.dtype, "scale": asdict(scale)}
    for architecture in tqdm(ARCHITECTURES, desc="sizes", unit="model"):
        figures[architecture] = measure(architecture, scale, runtime)
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
