"""Any number of sources and variants in batches of bounded size. Pictures come back as they will be stored: whole bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods.prompt_to_prompt import Edit, PromptToPrompt
from emuedit.synthesis.sampler import Sampler, Trajectory, Variant


def sources(
    sampler: Sampler, captions: Sequence[str], seeds: Sequence[int], guidance: float, rows: int
) -> tuple[Trajectory, Tensor]:
    """Paint G captions, `rows` at a time: their trajectory, and pictures float32 [G, 3, H, W] on the CPU."""
    parts = [sampler.sources(captions[i : i + rows], seeds[i : i + rows], guidance) for i in range(0, len(captions), rows)]
    trajectory = Trajectory.cat(*parts)
    return trajectory, decoded(sampler.base_model, trajectory.z[-1], rows)


def variants(sampler: Sampler, trajectory: Trajectory, wanted: Sequence[Variant], rows: int) -> Iterator[Tensor]:
    """Paint variants in batches of at most `rows` rows with their sources: pictures float32 [k, 3, H, W] on the CPU, in order.

    Put variants of one source next to each other: the source is then computed once for all of them in a batch.
    """
    for batch in packed(wanted, rows):
        yield decoded(sampler.base_model, sampler.variants(trajectory, batch), rows)


class _Sourced(Protocol):
    @property
    def source(self) -> int: ...


S = TypeVar("S", bound=_Sourced)


def packed(wanted: Sequence[S], rows: int) -> Iterator[list[S]]:
    """Batches in order, each of at most `rows` variants and distinct sources together (and of at least one variant)."""
    batch: list[S] = []
    for one in wanted:
        if batch and len(batch) + 1 + len({other.source for other in [*batch, one]}) > rows:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def by_words(
    base_model: PromptToPrompt, captions: Sequence[str], seeds: Sequence[int], guidance: float, wanted: Sequence[Edit], rows: int
) -> Iterator[Tensor]:
    """Paint edits of G captions by Prompt-to-Prompt, as `variants` does: pictures float32 [k, 3, H, W] on the CPU, in order."""
    for batch in packed(wanted, rows):
        own = sorted({one.source for one in batch})
        edits = [replace(one, source=own.index(one.source)) for one in batch]
        _, z = base_model.generate([captions[g] for g in own], [seeds[g] for g in own], [guidance] * len(own), edits)
        yield decoded(base_model.base_model, z, rows)


def decoded(base_model: TextToImageModel, z: Tensor, rows: int) -> Tensor:
    """Latents [N, C, h, w] -> pictures float32 [N, 3, H, W] in [-1, 1] on the CPU, rounded to bytes."""
    parts = [image_tensors.to_uint8(base_model.decode(z[i : i + rows])) for i in range(0, len(z), rows)]
    return torch.cat([image_tensors.from_uint8(part) for part in parts])
