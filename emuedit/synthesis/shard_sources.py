"""The first images of a shard: generated from a caption, once for all instructions of the caption, or images of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from emuedit.data import image_io
from emuedit.data.file_hashes import hash_file
from emuedit.data.records import Instruction
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import seed_for
from emuedit.synthesis import batching
from emuedit.synthesis.candidate import SynthesisParams, source_caption, source_key, variant_caption
from emuedit.synthesis.sampler import Sampler, Trajectory
from emuedit.tasks import get_task


class SourceImageError(ValueError):
    """Raised for an image of the user's that is missing or has changed since the stage `captions` read it."""


@dataclass(frozen=True)
class ShardSources:
    """G generated images, then the user's."""

    captions: list[str]  # [G]
    seeds: list[int]  # [G]
    trajectory: Trajectory | None  # of the generated images; None if there are none
    images: Tensor  # float32 [G + U, 3, H, W] in [-1, 1], on the CPU
    rows: dict[tuple[str, str], int]
    """`source_key` -> row."""

    def row(self, instruction: Instruction) -> int:
        """The row of an instruction's first image."""
        return self.rows[source_key(instruction)]

    def seed(self, row: int) -> int:
        """The seed of a generated image; 0 for an image of the user's."""
        return self.seeds[row] if row < len(self.seeds) else 0


def captions_fit(instruction: Instruction, base_model: TextToImageModel) -> bool:
    """Whether the captions from which the base model generates images are used without truncation."""
    captions = [] if instruction.image_hash else [source_caption(instruction)]
    if not get_task(instruction.task).annotated:
        captions.append(variant_caption(instruction))
    return not any(base_model.is_truncated(caption) for caption in captions)


def make_sources(instructions: Sequence[Instruction], sampler: Sampler, params: SynthesisParams, root: Path) -> ShardSources:
    """Generate the sources of these instructions, and read those that are images of the user's, in the base model's size.

    Raises SourceImageError for an image that is missing or has changed.
    """
    captions = sorted({source_caption(instruction) for instruction in instructions if not instruction.image_hash})
    seeds = [seed_for("pairs", "source", caption) for caption in captions]
    files = {source_key(row): row for row in sorted(instructions, key=source_key) if row.image_hash}
    rows = {(caption, ""): row for row, caption in enumerate(captions)}
    rows |= {key: row for row, key in enumerate(files, start=len(captions))}
    height, width = sampler.base_model.size
    parts, trajectory = [torch.empty(0, 3, height, width)], None
    if captions:
        trajectory, generated = batching.generate_sources(sampler, captions, seeds, params.guidance_scale, params.rows_per_batch)
        parts.append(generated)
    parts += [image_tensors.from_uint8(read_source(instruction, root, height, width)) for instruction in files.values()]
    return ShardSources(captions, seeds, trajectory, torch.cat(parts), rows)


def read_source(instruction: Instruction, root: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The image of an instruction, cropped to its centre and scaled: uint8 [H, W, 3].

    Raises SourceImageError if the file is missing or has changed.
    """
    path = root / (instruction.image or "")
    content = hash_file(path)
    if content != instruction.image_hash:
        got = "none" if content == "missing" else f"one with the hash {content}"
        raise SourceImageError(
            f"want the image {path} with the hash {instruction.image_hash}, as the stage captions read it, got {got}; restore "
            "it, or run the stage captions again"
        )
    pixels = image_io.read_image(path).pixels
    return np.array(ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))
