"""Whether the disk has room for the encoded pairs of a training."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from emuedit.models.text_to_image import TextToImageModel
from emuedit.progress import Progress
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.mirroring import has_no_side
from emuedit.training.batches.pair_encoding import to_float16

_BYTES_PER_VALUE = 2  # float16
_GB = 1e9


class DiskSpaceError(ValueError):
    """Raised if the encoded pairs do not fit on the disk."""


def check_disk_space(
    pairs: TrainingPairs, encoders: TextToImageModel, folder: Path, buckets: AspectBuckets, *, mirrored: bool
) -> None:
    """Raise DiskSpaceError if the latents and encoded instructions of these pairs do not fit on the disk of `folder`.

    The folder is made if missing; the files that it has are counted as some of them. The instructions are read only if they may
    not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in folder.iterdir())
    text_bytes = sum(array.nbytes for array in to_float16(encoders.null_text(1)).values())
    pixels = max(map(math.prod, buckets.sizes), default=math.prod(encoders.size))
    pair_bytes = 2 * encoders.channels * pixels // encoders.factor**2 * _BYTES_PER_VALUE
    if pairs.n_pairs * (text_bytes + pair_bytes * (1 + mirrored)) <= free:
        return
    texts, n_latents = set[int](), 0
    with Progress("train: read the instructions", len(pairs.shards), "shard") as progress:
        for shard in pairs.shards:
            instructions = shard.instructions(pairs.rows_of(shard))
            texts.update(map(hash, instructions))
            n_latents += len(instructions) + mirrored * sum(map(has_no_side, instructions))
            progress.advance()
    sizes = np.array([n_latents * pair_bytes, len(texts) * text_bytes])
    if sizes.sum() > free:
        latents_gb, texts_gb = sizes / _GB
        raise DiskSpaceError(
            f"want {sizes.sum() / _GB:.1f} GB free in {folder}, for latents of {pairs.n_pairs} pairs ({latents_gb:.1f} GB) and "
            f"{len(texts)} encoded instructions ({texts_gb:.1f} GB), got {free / _GB:.1f} GB with what is there; make "
            "room, keep fewer pairs, or set train.flip to false or a smaller train.resolution"
        )
