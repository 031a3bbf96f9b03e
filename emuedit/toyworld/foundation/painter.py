"""The painter: a latent diffusion model in Stable Diffusion's own format, text encoder and U-Net trained together."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emuedit.models.pixels import from_uint8
from emuedit.toyworld import render
from emuedit.toyworld.foundation import tokenizer as tokens
from emuedit.toyworld.foundation.loop import Recipe, bf16, device, train
from emuedit.toyworld.foundation.pool import world
from emuedit.toyworld.grammar import caption, voice
from emuedit.toyworld.scene import numbers, scenes

RECIPE = Recipe(steps=6000, batch=32, lr=8e-4, warmup_steps=300, decay_share=0.35, ema_decay=0.9985)
ON = Recipe(steps=2500, batch=32, lr=6e-4, warmup_steps=100, decay_share=0.35, ema_decay=0.9985)
"""Another round from published weights: 7,650 steps in all made those that are there."""
POOL = 40_000  # scenes whose latents are kept on disk, drawn again and again with other wordings
DROP_CAPTION = 0.10
OBJECT_WEIGHT = 3.0
"""The loss counts this much where an object is: grass is half noise, shapes are what captions speak of."""
LATE_TIMES = 0.5
"""Training times are 1000 u^0.5: more of them where there is much noise, for there the layout is decided."""
WIDTH = 160


class TextToLatent(nn.Module):
    """What is trained together: caption tokens to U-Net prediction."""

    def __init__(self, n_tokens: int, end: int) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=n_tokens,
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=tokens.CONTEXT,
                eos_token_id=end,
                bos_token_id=end - 1,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            out_channels=8,
            block_out_channels=(64, 128, 192),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(1, 2, 4),  # diffusers' old name: these are numbers of heads
            cross_attention_dim=WIDTH,
            norm_num_groups=16,
        )

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predicted v: z_t [B, 8, 16, 16], t [B] in [0, 999], ids [B, 48] -> [B, 8, 16, 16]."""
        return self.unet(z_t, t, self.text_encoder(ids).last_hidden_state).sample


def schedule() -> DDIMScheduler:
    """Stable Diffusion's betas rescaled to zero terminal SNR, v-prediction (Lin et al. 2023, arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def pool(vae: AutoencoderTiny, folder: Path, n: int = POOL) -> tuple[np.ndarray, np.ndarray]:
    """Latents float16 [n, 8, 16, 16] and where objects are, bool [n, 16, 16]: computed once, memory-mapped.

    Another autoencoder or another world makes another pool.
    """
    all_scenes = scenes(numbers("train", 0, n))
    mark = hashlib.blake2b(world(all_scenes).encode(), digest_size=4)
    for value in vae.state_dict().values():
        mark.update(value.cpu().numpy().tobytes())
    folder = folder / f"latents-{n}-{mark.hexdigest()}"
    files = folder / "latents.npy", folder / "objects.npy"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        vae.to(device())
        z = np.zeros((n, 8, 16, 16), np.float16)
        objects = np.zeros((n, 16, 16), bool)
        with torch.inference_mode(), bf16():
            for i in tqdm(range(0, n, 200), desc="latents"):
                known = render.truth(all_scenes[i : i + 200])
                x = from_uint8(known.images).to(device(), memory_format=torch.channels_last)
                z[i : i + 200] = vae.encode(x).latents.float().cpu().numpy()
                objects[i : i + 200] = (known.owner >= 0).reshape(-1, 16, 4, 16, 4).any((2, 4))
        np.save(files[0], z)
        np.save(files[1], objects)
        (folder / "done").touch()
    return np.load(files[0], mmap_mode="r"), np.load(files[1])


def run(
    scratch: Path, vae: AutoencoderTiny, recipe: Recipe = RECIPE, start: Path | None = None, n_pool: int = POOL
) -> StableDiffusionPipeline:
    """Train the painter over a finished autoencoder and return it as a pipeline; `start`: from the weights of this pipeline."""
    tokenizer = tokens.build(scratch / "tokenizer")
    end = tokenizer.convert_tokens_to_ids(tokens.END)
    torch.manual_seed(0)
    model = TextToLatent(len(tokenizer), end).to(memory_format=torch.channels_last)
    if start is not None:
        model.text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        model.unet = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32)
        model.to(memory_format=torch.channels_last)
    z_pool, objects = pool(vae, scratch, n_pool)
    all_scenes = scenes(numbers("train", 0, n_pool))
    scheduler = schedule()

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng(step)
        rows = rng.integers(n_pool, size=recipe.batch)
        said = [
            "" if rng.random() < DROP_CAPTION else caption(all_scenes, n, voice(all_scenes.number[n], "paint", step))
            for n in rows
        ]
        ids = tokenizer(said, padding="max_length", max_length=tokens.CONTEXT, truncation=True, return_tensors="pt")
        z = torch.from_numpy(z_pool[rows]).float().to(device(), memory_format=torch.channels_last)
        weight = 1 + (OBJECT_WEIGHT - 1) * torch.from_numpy(objects[rows])[:, None].to(z)
        eps = torch.randn_like(z)
        # one time in every stratum of the batch: less noise in the loss than independent times
        u = (torch.arange(len(z)) + torch.rand(len(z))) / len(z)
        t = (1000 * u**LATE_TIMES).long().clamp_max(999).to(device())
        z_t = scheduler.add_noise(z, eps, t)
        v = scheduler.get_velocity(z, eps, t)
        with bf16():
            predicted = model(z_t, t, ids.input_ids.to(device()))
        return (weight * (predicted.float() - v).square()).sum() / (weight.sum() * z.shape[1])

    train(model, loss_at, recipe, scratch)
    return pipeline(model, vae.cpu(), tokenizer)


def pipeline(model: TextToLatent, vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as a diffusers pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
