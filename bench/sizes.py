"""How many pairs a second, and in how much memory, do text_to_image of real shapes make? Random weights, soft masks, shared sources.

`uv run python bench/sizes.py [--quick]` writes `bench/results/sizes.json`; its last line is the same JSON. On a GPU: Stable
Diffusion 1.5's and XL's own sizes in bfloat16 at 512 px; on a CPU: the same networks a tenth as wide at 64 px, few steps.
`shared` samples each source once for its candidates, `alone` once for every candidate; `none` is a candidate that nothing
holds (M = 1). The pictures are noise: what is measured is what the same code costs at those sizes. Peak memory is the GPU's; on a
CPU that of the process so far.
"""

import argparse
import json
import logging
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm

from emuedit.core import soft_mask
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from emuedit.synthesis.sampler import Sampler, Variant

RESULT = Path(__file__).parent / "results/sizes.json"
KINDS = ("sd15", "sdxl")
WAYS: dict[str, dict[str, bool]] = {"shared": {}, "alone": {"alone": True}, "none": {"held": False}}


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    width: int  # channels of the U-Net's first level; 320 is the real one
    px: int
    steps: int
    captions: int
    candidates: int  # of each caption
    rounds: int  # timed ones; the median counts


FULL = Scale(width=320, px=512, steps=20, captions=4, candidates=3, rounds=3)
SMALL = Scale(width=32, px=64, steps=4, captions=4, candidates=3, rounds=5)


def tokenizer() -> Any:
    """CLIP's, a token a letter: nothing is downloaded."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def text_encoder(words: Any, hidden: int, layers: int, heads: int, projected: bool = False) -> Any:
    """A CLIP text encoder."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=hidden, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def base_model(kind: str, scale: Scale, device: str, dtype: torch.dtype) -> TextToImageModel:
    """A random base_model of Stable Diffusion 1.5's or XL's layout, `scale.width / 320` as wide."""

    def wide(channels: int) -> int:
        return max(8, channels * scale.width // 320 // 8 * 8)

    words, whole = tokenizer(), scale.width == 320
    first, second = wide(768), wide(1280)  # widths of the text encoders
    unet: dict[str, Any] = {"sample_size": scale.px // 8, "layers_per_block": 2}
    shared: dict[str, Any] = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=[wide(c) for c in (128, 256, 512, 512)], layers_per_block=2, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, sample_size=scale.px,
            norm_num_groups=32 if whole else 8,
        ),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        ),
        "tokenizer": words,
        "text_encoder": text_encoder(words, first, layers=12, heads=12 if whole else 1),
    }  # fmt: skip
    if kind == "sd15":
        unet |= {"block_out_channels": [wide(c) for c in (320, 640, 1280, 1280)], "attention_head_dim": 8}
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        network = diffusers.UNet2DConditionModel(**unet, cross_attention_dim=first)
        pipeline = diffusers.StableDiffusionPipeline(unet=network, **shared, **extra)
    else:
        unet |= {
            "block_out_channels": [wide(c) for c in (320, 640, 1280)], "attention_head_dim": [5, 10, 20] if whole else [1, 2, 4],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": second + 6 * 256,
        }  # fmt: skip
        network = diffusers.UNet2DConditionModel(**unet, cross_attention_dim=first + second)
        other = text_encoder(words, second, layers=32 if whole else 4, heads=20 if whole else 1, projected=True)
        pipeline = diffusers.StableDiffusionXLPipeline(
            unet=network, **shared, text_encoder_2=other, tokenizer_2=words, add_watermarker=False
        )
    pipeline.to(device, dtype if device != "cpu" else torch.float32)
    made = TextToImageModel(pipeline)
    for part in (made.unet, made.vae, *made.text_encoders):
        part.requires_grad_(False).eval()
    return made


def variants(scale: Scale, held: bool, alone: bool) -> list[Variant]:
    """Every candidate: a disc in the middle, softly masked, another word in the caption."""
    y, x = torch.meshgrid(torch.arange(scale.px), torch.arange(scale.px), indexing="ij")
    P = ((y - scale.px / 2) ** 2 + (x - scale.px / 2) ** 2 < (scale.px / 4) ** 2).float()[None]
    M = soft_mask.soft_mask(P[None], 0.0, 1.0, 0.0, scale.px // 16, scale.px / 64)[0] if held else torch.ones_like(P)
    of = [g for g in range(scale.captions) for _ in range(scale.candidates)]
    rows = range(len(of)) if alone else of
    kept, until = (0.2, 1.0) if held else (0.0, 0.0)
    return [Variant(row, f"a cat {g}", M, 0.0, kept, 0.0, until, 3.0) for row, g in zip(rows, of, strict=True)]


def seconds(sampler: Sampler, scale: Scale, held: bool = True, alone: bool = False) -> float:
    """Of one round: all sources, all candidates, all decoded."""
    times = scale.candidates if alone else 1
    captions = [f"a dog {g}" for g in range(scale.captions) for _ in range(times)]
    started = time.perf_counter()
    trajectory = sampler.sources(captions, list(range(len(captions))), 3.0)
    made = sampler.variants(trajectory, variants(scale, held, alone))
    for z in (*trajectory.z[-1].split(1), *made.split(1)):
        sampler.base_model.decode(z)
    if made.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    quick = parser.parse_args().quick
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    runtime = Runtime.choose("auto", "bfloat16")
    on_gpu = runtime.device == "cuda"
    scale = FULL if on_gpu else SMALL
    told: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "scale": asdict(scale)}
    for kind in tqdm(KINDS, desc="text_to_image", unit="base_model"):
        torch.manual_seed(0)
        sampler = Sampler(base_model(kind, scale, runtime.device, runtime.torch_dtype), scale.steps, runtime.torch_dtype)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        n = scale.captions * scale.candidates
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(1 + (1 if quick else scale.rounds)):  # the first one warms up
            for way, how in WAYS.items():
                took[way].append(seconds(sampler, scale, **how))
        median = {way: statistics.median(some[1:]) for way, some in took.items()}
        peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told[kind] = {
            "parameters_unet": sum(one.numel() for one in sampler.base_model.unet.parameters()),
            "pairs_per_second": {way: round(n / value, 3) for way, value in median.items()},
            "shared_over_alone": round(median["alone"] / median["shared"], 2),
            "peak_memory_gib": round(peak / 2**30, 2),
        }
    if not quick:
        RESULT.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
