"""Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): edit an image by its caption, with the source's attention maps.

It works for any diffusers U-Net with plain attention and any prediction type. Cross-attention maps are edited, so they
are computed explicitly (R x heads x N x L numbers per layer) in the steps that edit or record them. Self-attention maps
are only copied from the source, for which its queries and keys suffice. The data recipe of InstructPix2Pix
(arXiv 2211.09800) is a special case, see `instruct_pix2pix`.

Shapes: G sources, K edits, R = G + K rows (sources first), N tokens of a layer, L tokens of a caption, S steps, C
latent channels, h and w the height and width of the latents. With guidance the U-Net gets 2 R rows, first without text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from emuedit.models.attention_processor import install_processor
from emuedit.synthesis.methods.attention_maps import AttentionMapControl, MapEdits
from emuedit.synthesis.methods.caption_alignment import CaptionAlignment, CaptionTokens
from emuedit.synthesis.methods.local_blend import LocalBlend, blend_latents
from emuedit.synthesis.sampler import Sampler

ALL_LAYERS = 1 << 30
"""Value of `PromptToPromptEdit.self_tokens` for layers of any size."""


@dataclass(frozen=True)
class PromptToPromptEdit:
    """An edit of a source. Fractions are of the S steps, counted from the first step."""

    source: int
    caption: str
    cross_fraction: float  # steps in which cross-attention maps follow the source's; authors: 0.8
    self_fraction: float  # steps in which self-attention maps are the source's; authors: 0.4
    self_tokens: int  # only in layers of at most this many tokens; authors: 16 x 16 for latents of 64 x 64
    guidance_scale: float
    null_too: bool = False  # self-attention also in rows without text, unlike the authors
    blend: LocalBlend | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for fractions outside [0, 1]."""
        fractions = (self.cross_fraction, self.self_fraction)
        if wrong := [fraction for fraction in fractions if not 0 <= fraction <= 1]:
            raise ValueError(f"fractions of the steps must be in [0, 1], got {wrong}")

    @property
    def needs_alignment(self) -> bool:
        """Whether the words of the two captions are aligned."""
        return bool(self.cross_fraction or self.blend)


def instruct_pix2pix(source: int, caption: str, self_fraction: float, guidance_scale: float) -> PromptToPromptEdit:
    """InstructPix2Pix's variant: self-attention of the source in all layers and all rows, cross-attention unchanged."""
    return PromptToPromptEdit(
        source=source,
        caption=caption,
        cross_fraction=0.0,
        self_fraction=self_fraction,
        self_tokens=ALL_LAYERS,
        guidance_scale=guidance_scale,
        null_too=True,
    )


@dataclass(frozen=True)
class PromptToPrompt:
    """Generates sources and edits together, with the base model and the settings of a sampler."""

    sampler: Sampler

    def generate(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        guidance_scales: Sequence[float],
        edits: Sequence[PromptToPromptEdit],
    ) -> tuple[Tensor, Tensor]:
        """Generate G sources and K edits in one batch: latents float32 [G, C, h, w] and [K, C, h, w].

        The sources are those of `Sampler.sources`; an edit has the same noise as its source, initially and in every step. Raises
        ValueError for unequal numbers of captions, seeds and guidance scales, for captions that exceed the tokenizer's
        maximum if words are aligned, and for `self_tokens` below the U-Net's smallest self-attention.
        """
        if not len(captions) == len(seeds) == len(guidance_scales) or not captions:
            raise ValueError(
                f"want a seed and a guidance scale per caption, got {len(captions)}, {len(seeds)} and {len(guidance_scales)}"
            )
        base_model, n_sources = self.sampler.base_model, len(captions)
        source_of = [*range(n_sources), *(edit.source for edit in edits)]  # [R]
        generators = [torch.Generator().manual_seed(seeds[g]) for g in source_of]
        denoiser = self.sampler.denoiser(generators)
        z = denoiser.start(base_model.initial_noise(generators))  # [R, C, h, w]
        scale = torch.tensor([*guidance_scales, *(edit.guidance_scale for edit in edits)], device=z.device)
        text, null = base_model.encode_text([*captions, *(edit.caption for edit in edits)]), base_model.null_text(1)
        alignments = align_captions(base_model.tokenizer, captions, edits, text.hidden.shape[1])
        with install_processor(base_model.unet, AttentionMapControl()) as control:
            step_control = StepControl(control, edits, alignments, n_sources, self.sampler.steps)
            for i, t in enumerate(denoiser.timesteps):
                step_control.set_step(i, guided=self.sampler.n_terms(denoiser, i, scale) > 1)
                e, _ = self.sampler.predict_guided(denoiser, i, z, text, null, scale)
                control.check_self_tokens()
                z = step_control.apply_local_blend(i, denoiser.step(e, t, z))
        return z[:n_sources], z[n_sources:]


def align_captions(
    tokenizer: Any, captions: Sequence[str], edits: Sequence[PromptToPromptEdit], length: int
) -> list[CaptionAlignment]:
    """Align the caption of each of K edits with its source's, if needed; `length` is L."""
    tokens = cache(partial(CaptionTokens.from_caption, tokenizer))
    return [
        CaptionAlignment.build(tokens(captions[edit.source]), tokens(edit.caption), length)
        if edit.needs_alignment
        else CaptionAlignment.without_source(length)
        for edit in edits
    ]


@dataclass(frozen=True)
class StepControl:
    """Sets the attention control before each of S steps, and applies LocalBlend after it."""

    control: AttentionMapControl
    edits: Sequence[PromptToPromptEdit]
    alignments: Sequence[CaptionAlignment]
    n_sources: int
    steps: int

    def set_step(self, i: int, guided: bool) -> None:
        """Set the control for the forward pass of step i."""
        source_row = torch.tensor([*range(self.n_sources), *(edit.source for edit in self.edits)])  # [R]
        text_limits = [edit.self_tokens if i < round(edit.self_fraction * self.steps) else 0 for edit in self.edits]
        null_limits = [limit if edit.null_too else 0 for limit, edit in zip(text_limits, self.edits, strict=True)]
        no_limits = [0] * self.n_sources
        n_null = len(source_row) if guided else 0  # rows without text, which come first
        self.control.set(
            torch.cat([source_row, source_row + n_null]) if guided else source_row,
            torch.tensor([*no_limits, *null_limits, *no_limits, *text_limits] if guided else [*no_limits, *text_limits]),
            n_null,
            frozenset(edit.blend.n_tokens for edit in self.edits if edit.blend),
            self._map_edits(i, n_null),
        )

    def apply_local_blend(self, i: int, z: Tensor) -> Tensor:
        """After step i, blend the edits in z [R, C, h, w] with their sources (`blend_latents`)."""
        z = z.clone()
        for row, (edit, alignment) in enumerate(zip(self.edits, self.alignments, strict=True), start=self.n_sources):
            if edit.blend and i >= int(edit.blend.start * self.steps):
                maps = self.control.mean_map(edit.blend.n_tokens)  # [R, N, L]
                changed = (maps[edit.source], alignment.removed), (maps[row], alignment.added)
                z[row] = blend_latents(z[row], z[edit.source], changed, edit.blend.threshold)
        return z

    def _map_edits(self, i: int, n_null: int) -> MapEdits | None:
        """The edits of cross-attention maps that are active in step i."""
        active = [k for k, edit in enumerate(self.edits) if i < round(edit.cross_fraction * self.steps)]
        if not active:
            return None
        alignments = [self.alignments[k] for k in active]
        return MapEdits(
            n_null + self.n_sources + torch.tensor(active),
            n_null + torch.tensor([self.edits[k].source for k in active]),
            torch.stack([alignment.mapping.A for alignment in alignments]),
            torch.stack([alignment.mapping.target_weight for alignment in alignments]),
        )
