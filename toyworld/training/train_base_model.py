"""Training of the base model: a latent diffusion model in Stable Diffusion's format.

The text encoder and the U-Net train jointly, on the latents of a frozen VAE.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emuedit.models.attention_processor import use_unfused_attention_on_cpu
from emuedit.runtime import Runtime
from emuedit.training.distributed import n_processes, open_accelerator, run_distributed, shard
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import caption, wording_rng
from toyworld.scenes.scene import generate_scenes, scene_numbers
from toyworld.training import pretraining_corpus
from toyworld.training import tokenizer as tokens
from toyworld.training.render_cache import N_SCENES, scenes_digest
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=14_000, batch=32, lr=8e-4, warmup_steps=300, decay_share=0.35, ema_decay=0.9985)
CONTINUE_RECIPE = Recipe(steps=7000, batch=32, lr=6e-4, warmup_steps=100, decay_share=0.35, ema_decay=0.9985)
"""Continues from published weights. The shipped model was trained for 7,650 steps on captions only, then with this recipe."""
CAPTION_DROPOUT = 0.10
CORPUS_SHARE = 0.5
"""Share of samples from the pretraining corpus; the others are captioned scenes."""
OBJECT_WEIGHT = 3.0
"""Loss weight of latent pixels with objects; others have weight 1. Captions describe objects, and half of a background
like grass is noise. This weight is ours."""
TIMESTEP_POWER = 0.5
"""Training timesteps are 1000 u^0.5 with u uniform in [0, 1). This favours high noise, where the layout of
the image is decided. The power is ours."""
WIDTH = 160


class TextToLatent(nn.Module):
    """The modules that train jointly: a text encoder, and a U-Net that it conditions."""

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
            attention_head_dim=(1, 2, 4),  # a misnomer in diffusers: these are numbers of heads
            cross_attention_dim=WIDTH,
            norm_num_groups=16,
        )

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predict v: z_t [B, 8, 16, 16], t [B] in [0, 999], ids [B, 48] -> [B, 8, 16, 16]."""
        return self.unet(z_t, t, self.text_encoder(ids).last_hidden_state).sample


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas rescaled to zero terminal SNR, with v-prediction (Lin et al. 2023, arXiv 2305.08891)."""
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


def encode_scenes(vae: AutoencoderTiny, folder: Path, n: int = N_SCENES) -> Path:
    """Encode the first n scenes of the training split and return their subfolder of `folder`.

    It has the latents, float16 [n, 8, 16, 16], and a mask of the objects, bool [n, 16, 16].
    An existing subfolder is reused if the scenes, the renderer and the VAE are the same.
    """
    scenes = generate_scenes(scene_numbers("train", 0, n))
    scenes_hash = np.array(scenes_digest(scenes))
    folder = folder / f"latents-{n}-{pretraining_corpus.content_digest(vae, scenes_hash)}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(device())
    z = np.zeros((n, 8, 16, 16), np.float16)
    objects = np.zeros((n, 16, 16), bool)
    for i in tqdm(range(0, n, 200), desc="latents"):
        truth = render.truth(scenes[i : i + 200])
        z[i : i + 200] = pretraining_corpus.encode_latents(vae, truth.images)
        objects[i : i + 200] = pretraining_corpus.to_latent_mask(truth.owner >= 0)
    np.save(folder / "latents.npy", z)
    np.save(folder / "objects.npy", objects)
    (folder / "done").touch()
    return folder


class TrainingData:
    """Training batches of the base model: captioned scenes, and samples of the pretraining corpus."""

    def __init__(self, scenes_folder: Path, corpus_folder: Path) -> None:
        self.z = np.load(scenes_folder / "latents.npy", mmap_mode="r")
        self.objects = np.load(scenes_folder / "objects.npy")
        self.scenes = generate_scenes(scene_numbers("train", 0, len(self.z)))
        self.corpus = pretraining_corpus.load_corpus(corpus_folder)

    def batch(self, step: int, n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """n texts, latents float32 [n, 8, 16, 16] and object masks bool [n, 16, 16]; they depend only on `step`."""
        rng = np.random.default_rng(step)
        texts, z, objects = [], [], []
        for _ in range(n):
            from_corpus, is_dropped = rng.random() < CORPUS_SHARE, rng.random() < CAPTION_DROPOUT
            row = int(rng.integers(len(self.corpus) if from_corpus else len(self.z)))
            if from_corpus:
                text = str(rng.choice(self.corpus.texts[row]))
            else:
                text = caption(self.scenes, row, wording_rng(self.scenes.number[row], "paint", step))
            texts.append("" if is_dropped else text)
            z.append(self.corpus.z[row] if from_corpus else self.z[row])
            objects.append(self.corpus.objects[row] if from_corpus else self.objects[row])
        return texts, np.stack(z).astype(np.float32), np.stack(objects)


def run(
    scratch: Path,
    vae: AutoencoderTiny,
    recipe: Recipe = RECIPE,
    start: Path | None = None,
    n_scenes: int = N_SCENES,
    per_task: int = pretraining_corpus.PER_TASK,
) -> StableDiffusionPipeline:
    """Train the base model on the latents of a trained VAE and return it as a pipeline.

    `start` is the folder of a pipeline whose text encoder and U-Net initialise the training; None starts from random weights.
    On a CPU, several processes share each batch.
    """
    scenes_folder = encode_scenes(vae, scratch, n_scenes)
    corpus_folder = pretraining_corpus.build_corpus(vae, scratch, per_task)
    settings = (scratch, recipe, start, scenes_folder, corpus_folder)
    world_size = n_processes(0, recipe.batch, device().type)
    if world_size > 1:
        run_distributed(world_size, device().type, _train_in_process, *settings)
    model = _train_in_process(*settings)  # resumes from their finished state
    return build_pipeline(model, vae.cpu(), tokens.build(scratch / "tokenizer"))


def _train_in_process(
    scratch: Path,
    recipe: Recipe,
    start: Path | None,
    scenes_folder: Path,
    corpus_folder: Path,
) -> TextToLatent:
    """Training in one process; returns the model with its EMA weights."""
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
        use_unfused_attention_on_cpu(model.unet, [model.text_encoder], Runtime.choose().torch_dtype)
    data, scheduler = TrainingData(scenes_folder, corpus_folder), build_scheduler()

    def loss_at(step: int) -> Tensor:
        texts, latents, objects = data.batch(step, recipe.batch)
        eps = torch.randn(latents.shape)
        # stratified timesteps: lower variance of the loss than with independent ones
        u = (torch.randperm(len(latents)) + torch.rand(len(latents))) / len(latents)
        rows = shard(recipe.batch, accelerator.process_index, accelerator.num_processes)
        ids = tokenizer(texts[rows], padding="max_length", max_length=tokens.CONTEXT, truncation=True, return_tensors="pt")
        z, eps = torch.from_numpy(latents[rows]).to(device()), eps[rows].to(device())
        t = (1000 * u**TIMESTEP_POWER).long().clamp_max(999)[rows].to(device())
        weight = 1 + (OBJECT_WEIGHT - 1) * torch.from_numpy(objects[rows])[:, None].to(z)
        v = scheduler.get_velocity(z, eps, t)
        with autocast():
            v_pred = wrapped(scheduler.add_noise(z, eps, t), t, ids.input_ids.to(device()))
        return (weight * (v_pred.float() - v).square()).sum() / (weight.sum() * z.shape[1])

    with open_accelerator(device().type) as accelerator:
        wrapped = accelerator.prepare(model.to(accelerator.device))
        train(model, loss_at, recipe, scratch, accelerator=accelerator)
    return model


def build_pipeline(model: TextToLatent, vae: AutoencoderTiny, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Combine the parts into a diffusers pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
