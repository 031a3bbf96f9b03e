"""The base_model: a text-to-image U-Net diffusion pipeline (Stable Diffusion 1.x, 2.x, XL, or a toy of the same make).

Shapes: B samples, H and W pixels, h = H / factor and w = W / factor, C latent channels, L tokens, D their width.
Prediction type (eps, v) and zero terminal SNR are the scheduler's business; nothing here knows them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emuedit.models import image_tensors, model_sources, vae_latents


@dataclass(frozen=True)
class TextCondition:
    """What the U-Net reads: `hidden` [B, L, D], and for SDXL also `pooled` [B, P]."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def repeat(self, n: int) -> TextCondition:
        """One condition for n samples: [1, ...] -> [n, ...]."""
        pooled = None if self.pooled is None else self.pooled.expand(n, -1)
        return TextCondition(self.hidden.expand(n, -1, -1), pooled)

    @staticmethod
    def cat(*parts: TextCondition) -> TextCondition:
        """The conditions of several batches as one, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextCondition(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


class TextToImageModel:
    """A text-to-image pipeline with its parts open: `unet`, `scheduler`, `vae`, `tokenizer`, `text_encoder`."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.unet, self.vae, self.scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        second = getattr(pipeline, "text_encoder_2", None)
        self.text_encoders = [self.text_encoder] if second is None else [self.text_encoder, second]
        self.factor: int = pipeline.vae_scale_factor
        self.channels: int = pipeline.vae.config.latent_channels
        sample = self.unet.config.sample_size
        h, w = (sample, sample) if isinstance(sample, int) else sample
        self.size: tuple[int, int] = (h * self.factor, w * self.factor)  # (H, W) the U-Net was trained at
        self._check()

    @property
    def device(self) -> torch.device:
        """Where the U-Net lives; text, noise and latents are made there."""
        device: torch.device = self.unet.device
        return device

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        """Captions -> their condition. Words beyond the tokenizer's length are cut (diffusers logs which)."""
        with torch.no_grad():
            return self.read_text(captions)

    def read_text(self, captions: Sequence[str]) -> TextCondition:
        """The same with gradients, for those who train the text encoders."""
        got = self.pipeline.encode_prompt(
            list(captions), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return TextCondition(got[0], got[2] if len(got) == 4 else None)

    def null_text(self, n: int, negative: str = "") -> TextCondition:
        """The condition to guide away from, for n samples; SDXL wants zeros where there is no negative text."""
        text = self.encode_text([negative])
        if not negative and getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False):
            pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
            text = TextCondition(torch.zeros_like(text.hidden), pooled)
        return text.repeat(n)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, h, w] (the mean, not a draw)."""
        return vae_latents.encode(self.vae, image_tensors.check(images), self.factor)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, h, w] -> images, float32 [B, 3, H, W] clamped to [-1, 1]."""
        return vae_latents.decode(self.vae, z)

    def noise(self, generators: Sequence[torch.Generator], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Standard normal latents [B, C, h, w], one CPU generator a sample; `size` is (H, W) in pixels."""
        height, width = size or self.size
        vae_latents.check_size(height, width, self.factor)
        shape = (1, self.channels, height // self.factor, width // self.factor)
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.device)

    def predict(self, z_t: torch.Tensor, t: torch.Tensor | int, text: TextCondition) -> torch.Tensor:
        """One forward of the U-Net: z_t [B, C, h, w] at timestep t -> its prediction, float32 [B, C, h, w]."""
        added: dict[str, torch.Tensor] | None = None
        if text.pooled is not None:
            # SDXL's size conditions: original size, crop corner, target size (arXiv 2307.01952, section 2.2)
            height, width = z_t.shape[-2] * self.factor, z_t.shape[-1] * self.factor
            ids = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=text.hidden.dtype)
            added = {"text_embeds": text.pooled, "time_ids": ids.repeat(len(z_t), 1)}
        out: torch.Tensor = self.unet(
            z_t.to(self.unet.dtype), t, encoder_hidden_states=text.hidden, added_cond_kwargs=added, return_dict=False
        )[0]
        return out.float()

    def generate(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        negative: str = "",
        *,
        size: tuple[int, int] | None = None,
        progress: bool = False,
    ) -> torch.Tensor:
        """Captions -> images, float32 [B, 3, H, W] in [-1, 1]. A sample depends on its caption and seed alone.

        Classifier-free guidance (arXiv 2207.12598): e(null) + guidance (e(text) - e(null)), both in one forward;
        guidance 1 is the plain conditional model. `size` is (H, W) in pixels, the U-Net's own if None.
        """
        if len(captions) != len(seeds) or not captions:
            raise ValueError(f"paint wants one seed a caption, got {len(captions)} captions and {len(seeds)} seeds")
        guided = guidance != 1.0
        text = self.encode_text(captions)
        text = TextCondition.cat(self.null_text(len(text), negative), text) if guided else text
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scheduler = type(self.scheduler).from_config(self.scheduler.config)  # a fresh one: some keep a history
        scheduler.set_timesteps(steps, device=self.device)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        z_t = self.noise(generators, size) * scheduler.init_noise_sigma  # [B, C, h, w]
        with torch.no_grad():
            for t in _shown(scheduler.timesteps, progress):
                scaled = scheduler.scale_model_input(z_t, t)
                e = self.predict(torch.cat([scaled, scaled]) if guided else scaled, t, text)
                if guided:
                    e_null, e_text = e.chunk(2)
                    e = e_null + guidance * (e_text - e_null)
                z_t = scheduler.step(e, t, z_t, **extra, return_dict=False)[0]
        return self.decode(z_t)

    def _check(self) -> None:
        channels = self.unet.config.in_channels
        if channels != self.channels:
            raise ValueError(
                f"a base_model's U-Net must read the VAE's {self.channels} channels, got one that reads {channels}; "
                "an editor's weights belong to the editor's own loader"
            )
        length, room = self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings
        if length > room:
            raise ValueError(
                f"the tokenizer's model_max_length must be at most the text encoder's {room} positions, "
                f"got {length}; build the tokenizer with model_max_length={room} and save it again"
            )


def load(
    name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None
) -> TextToImageModel:
    """A base_model from a pipeline folder or a hub id. A VAE that overflows in float16 stays in float32."""
    return TextToImageModel(open_pipeline(name_or_path, device, dtype, revision))


def open_pipeline(name_or_path: str, device: str, dtype: torch.dtype, revision: str | None) -> Any:
    """The frozen pipeline behind a base_model or an editor: safetensors only, without the parts nobody here uses."""
    index = model_sources.manifest(name_or_path, model_sources.BASE_MODEL, revision)
    diffusers = model_sources.library("diffusers")
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    unused = {part: nothing for part, nothing in unused.items() if part in index}
    if "requires_safety_checker" in index:
        unused["requires_safety_checker"] = False
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(
        name_or_path, revision=revision, dtype=dtype, use_safetensors=True, **unused
    )
    if dtype == torch.float16 and getattr(pipeline.vae.config, "force_upcast", False):
        pipeline.vae.to(torch.float32)
    pipeline.to(device)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.requires_grad_(False).eval()
    return pipeline


def _shown(timesteps: torch.Tensor, progress: bool) -> Any:
    return model_sources.library("tqdm").tqdm(timesteps, desc="paint") if progress else timesteps


def use_unfused_attention_on_cpu(unet: Any, text_encoders: Iterable[Any] = ()) -> None:
    """On a CPU: plain products instead of torch's fused attention, slow backwards there. A fifth off a training step (ours)."""
    if unet.device.type != "cpu":
        return
    unet.set_attn_processor(model_sources.library("diffusers.models.attention_processor").AttnProcessor())
    for encoder in text_encoders:
        encoder.set_attn_implementation("eager")
