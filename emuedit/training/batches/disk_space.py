"""Room on the disk for the encoded pairs of a training."""

from __future__ import annotations

import math
import shutil
from itertools import compress
from pathlib import Path

import numpy as np

from emuedit.data.text_hash import text_hash
from emuedit.models.text_to_image import TextToImageModel
from emuedit.progress import Progress
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_files import encoded_file, encoded_parts
from emuedit.training.batches.mirroring import has_no_side
from emuedit.training.batches.pair_encoding import to_float16
from emuedit.training.batches.text_files import delete_files, null_key

_BYTES_PER_VALUE = 2  # float16
_GB = 1e9


class DiskSpaceError(ValueError):
    """Raised if the encoded pairs do not fit on the disk."""


def make_room(
    pairs: TrainingPairs, encoders: TextToImageModel, folder: Path, buckets: AspectBuckets, *, mirrored: bool, text_key: str
) -> None:
    """Delete the files in `folder` that are of no use for these pairs, if those to write need their room.

    Raises DiskSpaceError, and deletes nothing, if the latents and encoded instructions that are missing do not fit even so. The
    folder is made if missing. The instructions are read only if all pairs may not fit. `text_key`: `EncodingKeys.texts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    text_bytes = sum(array.nbytes for array in to_float16(encoders.null_text(1)).values())
    pixels = max(map(math.prod, buckets.sizes), default=math.prod(encoders.size))
    pair_bytes = 2 * encoders.channels * pixels // encoders.factor**2 * _BYTES_PER_VALUE
    if pairs.n_pairs * (text_bytes + pair_bytes * (1 + mirrored)) <= free:
        return
    contents, texts, n_pairs, n_latents = set[str](), set[int](), 0, 0
    parts_of = encoded_parts(folder)
    with Progress("train: read the instructions", len(pairs.shards), "shard") as progress:
        for shard in pairs.shards:
            rows, content = pairs.rows_of(shard), shard.latents_key(buckets.sizes, mirrored)
            encoded = [np.load(encoded_file(folder, content, part))["id"] for part in parts_of.get(content, ())]
            instructions = shard.instructions(rows)
            missing = [*compress(instructions, ~np.isin(rows.ids, np.concatenate([rows.ids[:0], *encoded])))]
            contents.add(content)
            texts.update(text_hash(instruction.encode()) for instruction in instructions)
            n_pairs += len(missing)
            n_latents += len(missing) + mirrored * sum(map(has_no_side, missing))
            progress.advance()
    hashes_of = {file.name.split(".")[0]: set(np.load(file).tolist()) for file in folder.glob(f"{text_key}-*.texts.npy")}
    n_texts = len(texts.difference(*hashes_of.values()))
    sizes = np.array([n_latents * pair_bytes, n_texts * text_bytes])
    if sizes.sum() <= free:
        return
    in_use = {*contents, null_key(text_key), *(key for key, hashes in hashes_of.items() if hashes & texts)}
    keys_of = {file: file.name.split(".")[0] for file in folder.iterdir()}
    unused = [file for file, key in keys_of.items() if not {key, key.split("-")[0]} & in_use]
    room = free + sum(file.stat().st_size for file in unused)
    if sizes.sum() > room:
        latents_gb, texts_gb = sizes / _GB
        raise DiskSpaceError(
            f"want {sizes.sum() / _GB:.1f} GB free in {folder}, for latents of {n_pairs} pairs ({latents_gb:.1f} GB) and "
            f"{n_texts} encoded instructions ({texts_gb:.1f} GB), got {room / _GB:.1f} GB with the files of other pairs there; "
            "make room, keep fewer pairs, or set train.flip to false or a smaller train.resolution"
        )
    delete_files(unused)
