"""The base_model: a latent diffusion model in Stable Diffusion's own format, text encoder and U-Net trained together."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emuedit.models.text_to_image import use_unfused_attention_on_cpu
from emuedit.training import distributed
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import caption, voice
from toyworld.scenes.scene import numbers, scenes
from toyworld.training import pretraining_corpus
from toyworld.training import tokenizer as tokens
from toyworld.training.render_cache import world
from toyworld.training.training_run import Recipe, bf16, device, train

RECIPE = Recipe(steps=14_000, batch=32, lr=8e-4, warmup_steps=300, decay_share=0.35, ema_decay=0.9985)
ON = Recipe(steps=7000, batch=32, lr=6e-4, warmup_steps=100, decay_share=0.35, ema_decay=0.9985)
"""Another round from published weights. Those that are there: 7,650 steps of captions alone, then this round."""
POOL = 40_000  # scenes whose latents are kept on disk, drawn again and again with other wordings
DROP_CAPTION = 0.10
WEB_SHARE = 0.5
"""Of the samples: pictures from the web, the others are scenes with their captions."""
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


def pool(vae: AutoencoderTiny, folder: Path, n: int = POOL) -> Path:
    """Where the latents float16 [n, 8, 16, 16] of n scenes and their objects, bool [n, 16, 16], are kept: computed once."""
    all_scenes = scenes(numbers("train", 0, n))
    folder = folder / f"latents-{n}-{pretraining_corpus.marked(vae, np.array(world(all_scenes)))}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(device())
    z = np.zeros((n, 8, 16, 16), np.float16)
    objects = np.zeros((n, 16, 16), bool)
    for i in tqdm(range(0, n, 200), desc="latents"):
        known = render.truth(all_scenes[i : i + 200])
        z[i : i + 200] = pretraining_corpus.encoded(vae, known.images)
        objects[i : i + 200] = pretraining_corpus.cells(known.owner >= 0)
    np.save(folder / "latents.npy", z)
    np.save(folder / "objects.npy", objects)
    (folder / "done").touch()
    return folder


class Lessons:
    """What the base_model learns from, a batch at a time: captioned scenes, and what the web holds besides."""

    def __init__(self, captioned: Path, besides: Path) -> None:
        self.z = np.load(captioned / "latents.npy", mmap_mode="r")
        self.objects = np.load(captioned / "objects.npy")
        self.scenes = scenes(numbers("train", 0, len(self.z)))
        self.web = pretraining_corpus.seen(besides)

    def batch(self, step: int, n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """n texts, their latents float32 [n, 8, 16, 16], and where the objects are, bool [n, 16, 16]; the step decides."""
        rng = np.random.default_rng(step)
        said, z, objects = [], [], []
        for _ in range(n):
            besides, silent = rng.random() < WEB_SHARE, rng.random() < DROP_CAPTION
            row = int(rng.integers(len(self.web) if besides else len(self.z)))
            if besides:
                text = str(rng.choice(self.web.texts[row]))
            else:
                text = caption(self.scenes, row, voice(self.scenes.number[row], "paint", step))
            said.append("" if silent else text)
            z.append(self.web.z[row] if besides else self.z[row])
            objects.append(self.web.objects[row] if besides else self.objects[row])
        return said, np.stack(z).astype(np.float32), np.stack(objects)


def run(
    scratch: Path,
    vae: AutoencoderTiny,
    recipe: Recipe = RECIPE,
    start: Path | None = None,
    n_pool: int = POOL,
    per_task: int = pretraining_corpus.PER_TASK,
) -> StableDiffusionPipeline:
    """Train the base_model over a finished autoencoder and return it as a pipeline; `start`: from the weights of this pipeline.

    On a CPU the cores share every batch.
    """
    kept = pool(vae, scratch, n_pool), pretraining_corpus.gather(vae, scratch, per_task)
    size = distributed.size_for(0, recipe.batch, device().type)
    if size > 1:
        distributed.together(size, _learn, scratch, recipe, start, *kept)
    model = _learn(distributed.ProcessGroup(), scratch, recipe, start, *kept)
    return pipeline(model, vae.cpu(), tokens.build(scratch / "tokenizer"))


def _learn(
    crew: distributed.ProcessGroup, scratch: Path, recipe: Recipe, start: Path | None, captioned: Path, besides: Path
) -> TextToLatent:
    tokenizer = tokens.build(scratch / "tokenizer")
    end = tokenizer.convert_tokens_to_ids(tokens.END)
    torch.manual_seed(0)
    model = TextToLatent(len(tokenizer), end)
    if start is not None:
        model.text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        model.unet = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32)
    if device().type != "cpu":
        model.to(memory_format=torch.channels_last)
    else:
        use_unfused_attention_on_cpu(model.unet, [model.text_encoder])
    lessons, scheduler = Lessons(captioned, besides), schedule()

    def loss_at(step: int) -> Tensor:
        said, latents, objects = lessons.batch(step, recipe.batch)
        eps = torch.randn(latents.shape)
        # one time in every stratum of the batch: less noise in the loss than independent times
        u = (torch.randperm(len(latents)) + torch.rand(len(latents))) / len(latents)
        mine = crew.share(recipe.batch)
        ids = tokenizer(said[mine], padding="max_length", max_length=tokens.CONTEXT, truncation=True, return_tensors="pt")
        z, eps = torch.from_numpy(latents[mine]).to(device()), eps[mine].to(device())
        t = (1000 * u**LATE_TIMES).long().clamp_max(999)[mine].to(device())
        weight = 1 + (OBJECT_WEIGHT - 1) * torch.from_numpy(objects[mine])[:, None].to(z)
        v = scheduler.get_velocity(z, eps, t)
        with bf16():
            predicted = model(scheduler.add_noise(z, eps, t), t, ids.input_ids.to(device()))
        return (weight * (predicted.float() - v).square()).sum() / (weight.sum() * z.shape[1])

    train(model, loss_at, recipe, scratch, crew=crew)
    return model


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
