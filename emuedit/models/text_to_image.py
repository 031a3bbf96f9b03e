"""The base model: a text-to-image U-Net diffusion pipeline (Stable Diffusion 1.x, 2.x, XL, or a toy model).

Shapes: B samples, H and W pixels, h = H / factor and w = W / factor, C latent channels, L tokens, D their width.
Prediction type (eps, v) and zero terminal SNR are handled by the scheduler, not by this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emuedit.core.guidance import classifier_free
from emuedit.models import image_tensors, model_files, model_sources, objective, vae_latents
from emuedit.models.denoising import Denoiser, size_conditions
from emuedit.models.text_encoding import TextEncoding, Tokens


@dataclass(frozen=True)
class TextCondition:
    """The U-Net's text input: `hidden` [B, L, D], and for SDXL also `pooled` [B, P]."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def repeat(self, n: int) -> TextCondition:
        """Repeat one condition for n samples: [1, ...] -> [n, ...]."""
        pooled = None if self.pooled is None else self.pooled.expand(n, -1)
        return TextCondition(self.hidden.expand(n, -1, -1), pooled)

    def take(self, rows: Sequence[int] | slice | torch.Tensor) -> TextCondition:
        """The conditions at these rows, in this order; rows may repeat."""
        return TextCondition(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def cat(*parts: TextCondition) -> TextCondition:
        """Concatenate the conditions of several batches."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return TextCondition(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


class TextToImageModel:
    """A text-to-image pipeline of diffusers with direct access to its parts.

    The parts are `unet`, `scheduler`, `vae`, `tokenizer` and `text_encoder` (SDXL: all of `text_encoders`).
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.unet, self.vae, self.scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        second = getattr(pipeline, "text_encoder_2", None)
        self.text_encoders = [self.text_encoder] if second is None else [self.text_encoder, second]
        self._text_encoding = TextEncoding(
            [self.tokenizer, pipeline.tokenizer_2] if second else [self.tokenizer], self.text_encoders
        )
        self.factor: int = pipeline.vae_scale_factor
        self.channels: int = pipeline.vae.config.latent_channels
        sample = self.unet.config.sample_size
        h, w = (sample, sample) if isinstance(sample, int) else sample
        self.size: tuple[int, int] = (h * self.factor, w * self.factor)  # (H, W) in px at which the U-Net was trained
        self._check()

    @property
    def device(self) -> torch.device:
        """The U-Net's device; text conditions, noise and latents are created on it."""
        device: torch.device = self.unet.device
        return device

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        """Encode captions. Tokens beyond the tokenizer's maximum length are truncated."""
        with torch.no_grad():
            return self.encode_text_with_grad(captions)

    def encode_text_with_grad(self, captions: Sequence[str]) -> TextCondition:
        """Encode captions with gradients, to train the text encoders."""
        return self.encode_tokens([tokens.to(self.device) for tokens in self.tokenize(captions)])

    def tokenize(self, captions: Sequence[str]) -> tuple[Tokens, ...]:
        """Captions as tokens for each text encoder, on the CPU."""
        return self._text_encoding.tokenize(captions)

    def encode_tokens(self, tokens: Sequence[Tokens]) -> TextCondition:
        """Encode tokens on the model's device, with gradients."""
        return TextCondition(*self._text_encoding.encode(tokens))

    def is_truncated(self, caption: str) -> bool:
        """Whether a caption exceeds the token limit of a text encoder."""
        return self._text_encoding.is_truncated(caption)

    def null_text(self, n: int, negative: str = "") -> TextCondition:
        """The negative condition of classifier-free guidance, for n samples.

        All zeros if the negative text is empty and the pipeline's config requires it (SDXL).
        """
        text = self.encode_text([negative])
        return (text if negative else self.as_null(text)).repeat(n)

    def as_null(self, empty: TextCondition) -> TextCondition:
        """Convert the encoded empty text to the null condition: detached, or all zeros (see `null_text`)."""
        is_zero = getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False)
        as_null = torch.zeros_like if is_zero else torch.Tensor.detach
        return TextCondition(as_null(empty.hidden), None if empty.pooled is None else as_null(empty.pooled))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, h, w] (the mean, not a sample)."""
        return vae_latents.encode(self.vae, image_tensors.check_images(images), self.factor)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, h, w] -> images, float32 [B, 3, H, W] clamped to [-1, 1]."""
        return vae_latents.decode(self.vae, z)

    def initial_noise(self, generators: Sequence[torch.Generator], size: tuple[int, int] | None = None) -> torch.Tensor:
        """Draw standard normal latents [B, C, h, w] with one generator per sample, on its device; `size` is (H, W) in px."""
        height, width = size or self.size
        vae_latents.check_size(height, width, self.factor)
        shape = (1, self.channels, height // self.factor, width // self.factor)
        device = self.device  # diffusers iterates over all modules to find it
        return torch.cat([torch.randn(shape, generator=g, device=g.device).to(device) for g in generators])

    def predict(self, z_t: torch.Tensor, t: torch.Tensor | int, text: TextCondition) -> torch.Tensor:
        """Run the U-Net once: z_t [B, C, h, w] at timestep t -> its prediction, float32 [B, C, h, w]."""
        added_cond = size_conditions(text.pooled, z_t, self.factor, text.hidden.dtype)
        out: torch.Tensor = self.unet(
            z_t.to(self.unet.dtype), t, encoder_hidden_states=text.hidden, added_cond_kwargs=added_cond, return_dict=False
        )[0]
        return out.float()

    def generate(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        negative: str = "",
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Generate an image per caption, float32 [B, 3, H, W] in [-1, 1]. An image depends only on its caption and seed.

        Classifier-free guidance (arXiv 2207.12598): e(null) + s (e(text) - e(null)), both in one forward pass;
        s = 1 gives the conditional prediction. `size`: (H, W) in px; None: the U-Net's training size.
        Raises ValueError for unequal numbers of seeds and captions, and without captions.
        """
        if len(captions) != len(seeds) or not captions:
            raise ValueError(f"want one seed per caption, got {len(captions)} captions and {len(seeds)} seeds")
        guided = guidance_scale != 1.0
        text = self.encode_text(captions)
        text = TextCondition.cat(self.null_text(len(text), negative), text) if guided else text
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        denoiser = Denoiser(self.scheduler, steps, self.device, generators)
        z_t = denoiser.start(self.initial_noise(generators, size))  # [B, C, h, w]
        with torch.no_grad():
            for t in denoiser.timesteps:
                scaled = denoiser.scale(z_t, t)
                e = self.predict(torch.cat([scaled, scaled]) if guided else scaled, t, text)
                if guided:
                    e_null, e_text = e.chunk(2)
                    e = classifier_free(e_null, e_text, guidance_scale)
                z_t = denoiser.step(e, t, z_t)
        return self.decode(z_t)

    def _check(self) -> None:
        """Raise ValueError for incompatible parts, and for a scheduler without a known objective."""
        objective.prediction_type_of(self.scheduler)
        channels = self.unet.config.in_channels
        if channels != self.channels:
            raise ValueError(
                f"a base model's U-Net must have the VAE's {self.channels} input channels, got {channels}; "
                "load the weights of an editor with emuedit.editor.checkpoint"
            )
        length, positions = self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"the tokenizer's model_max_length must be at most the text encoder's {positions} positions, "
                f"got {length}; build the tokenizer with model_max_length={positions} and save it again"
            )


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TextToImageModel:
    """Load a base model from a pipeline folder or a hub id. A VAE that overflows in float16 stays in float32."""
    return TextToImageModel(open_pipeline(name_or_path, device, dtype))


def open_pipeline(name_or_path: str, device: str, dtype: torch.dtype) -> Any:
    """Load the frozen pipeline of a base model from safetensors, without the unused parts."""
    manifest = model_sources.read_manifest(name_or_path, model_sources.BASE_MODEL)
    diffusers = model_sources.import_library("diffusers")
    unused: dict[str, Any] = {part: None for part in model_files.UNUSED_PARTS if part in manifest}
    if "requires_safety_checker" in manifest:
        unused["requires_safety_checker"] = False
    name, revision = model_sources.split_revision(name_or_path)
    pipeline = getattr(diffusers, manifest["_class_name"]).from_pretrained(
        name, revision=revision, dtype=dtype, use_safetensors=True, **unused
    )
    return freeze(pipeline, device)


def freeze(pipeline: Any, device: str) -> Any:
    """Move a pipeline to `device`, with its networks in evaluation mode and without gradients; see `avoid_vae_overflow`."""
    avoid_vae_overflow(pipeline.vae)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def avoid_vae_overflow(vae: Any) -> None:
    """Convert a float16 VAE to float32 if its config has `force_upcast`: SDXL's, which overflows, and those without the key.

    True is the default of diffusers' AutoencoderKL, so SD1.5's VAE is converted too; AutoencoderTiny's is False.
    """
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)


def grid_of(model: TextToImageModel) -> int:
    """Image sides must be multiples of these px: VAE factor times 2 for each level of the U-Net but one."""
    n_halvings: int = len(model.unet.config.block_out_channels) - 1
    return model.factor * 2**n_halvings
