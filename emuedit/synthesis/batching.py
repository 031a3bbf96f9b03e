"""Generate any number of sources and variants in batches of bounded size. Images are rounded to bytes, as stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPrompt, PromptToPromptEdit
from emuedit.synthesis.sampler import Sampler, Trajectory
from emuedit.synthesis.variant_plan import Variant

MAX_FEATURE_BYTES = 2**30
"""Memory for the attention of all sources of a shard: enough for small U-Nets. For larger ones, such as Stable Diffusion at
512 px (185 MB per source and step in half precision), nothing is recorded; sources then run together with their variants."""


def generate_sources(
    sampler: Sampler, captions: Sequence[str], seeds: Sequence[int], guidance_scale: float, max_rows: int
) -> tuple[Trajectory, Tensor]:
    """Generate G captions, `max_rows` at a time: (trajectory, images); images are float32 [G, 3, H, W] on the CPU."""
    batches = [slice(i, i + max_rows) for i in range(0, len(captions), max_rows)]
    bytes_per_source = MAX_FEATURE_BYTES // len(captions)
    parts = [
        sampler.sources(captions[batch], seeds[batch], guidance_scale, bytes_per_source * len(captions[batch]))
        for batch in batches
    ]
    trajectory = Trajectory.cat(*parts)
    return trajectory, decode_in_batches(sampler.base_model, trajectory.z[-1], max_rows)


def generate_variants(sampler: Sampler, trajectory: Trajectory, variants: Sequence[Variant], max_rows: int) -> Iterator[Tensor]:
    """Generate variants in batches of at most `max_rows` rows, including sources: float32 [k, 3, H, W] on the CPU, in order.

    Variants of one source should be adjacent: the source is then computed once per batch.
    """
    for batch in pack(variants, max_rows):
        yield decode_in_batches(sampler.base_model, sampler.variants(trajectory, batch), max_rows)


def generate_edits(
    method: PromptToPrompt,
    captions: Sequence[str],
    seeds: Sequence[int],
    guidance_scale: float,
    edits: Sequence[PromptToPromptEdit],
    max_rows: int,
) -> Iterator[Tensor]:
    """Generate Prompt-to-Prompt edits of G captions in such batches: float32 [k, 3, H, W] on the CPU, in order."""
    for batch in pack(edits, max_rows):
        sources = sorted({edit.source for edit in batch})
        renumbered = [replace(edit, source=sources.index(edit.source)) for edit in batch]
        scales = [guidance_scale] * len(sources)
        _, z = method.generate([captions[g] for g in sources], [seeds[g] for g in sources], scales, renumbered)
        yield decode_in_batches(method.sampler.base_model, z, max_rows)


class _HasSource(Protocol):
    @property
    def source(self) -> int: ...


S = TypeVar("S", bound=_HasSource)


def pack(items: Sequence[S], max_rows: int) -> Iterator[list[S]]:
    """Batches in order; items and distinct sources of a batch are at most `max_rows` (at least one item)."""
    batch: list[S] = []
    for item in items:
        if batch and len(batch) + 1 + len({other.source for other in [*batch, item]}) > max_rows:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def decode_in_batches(base_model: TextToImageModel, z: Tensor, max_rows: int) -> Tensor:
    """Latents [N, C, h, w] -> images float32 [N, 3, H, W] in [-1, 1] on the CPU, rounded to bytes."""
    parts = [image_tensors.to_uint8(base_model.decode(z[i : i + max_rows])) for i in range(0, len(z), max_rows)]
    return torch.cat([image_tensors.from_uint8(part) for part in parts])
