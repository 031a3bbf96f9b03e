"""The examples of task inversion, encoded once: those to learn from, with mirrored copies, and the held-out ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emuedit.data.image_io import Pixels
from emuedit.editor.sampling import EditSampler
from emuedit.models import image_tensors
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.mirroring import has_no_side

PIXELS_PER_PASS = 8 * 512**2
"""Pixels per VAE batch and per pass: eight examples of 512 px. Ours."""


def rows_by_image(before: Pixels) -> list[list[int]]:
    """The rows of each image before an edit, uint8 [N, H, W, 3], in the order of their first; equal images count once."""
    rows_of: dict[bytes, list[int]] = {}
    for row, image in enumerate(before):
        rows_of.setdefault(hashlib.blake2b(image.tobytes()).digest(), []).append(row)
    return list(rows_of.values())


def encode_split(
    sampler: EditSampler,
    before: Pixels,
    after: Pixels,
    instructions: Sequence[str],
    split: tuple[Sequence[int], Sequence[int]],
    flip: bool,
    n_passes: int = 1,
) -> tuple[Batch, Batch]:
    """The examples to learn from and the held-out ones, at the rows of `split`; arguments else as for `encode_examples`.

    flip: the first are followed by mirrored copies of those whose instruction holds for a mirrored image (`mirroring`).
    """
    learned, held_out = (np.asarray(rows, np.int64) for rows in split)
    mirrored = np.asarray([row for row in learned if flip and has_no_side(instructions[row])], np.int64)
    source, target = (
        np.concatenate([pictures[learned], pictures[mirrored, :, ::-1]]) if len(mirrored) else pictures[learned]
        for pictures in (before, after)
    )
    texts, held_out_texts = ([instructions[row] for row in rows] for rows in ([*learned, *mirrored], held_out))
    return (
        encode_examples(sampler, source, target, texts, n_passes),
        encode_examples(sampler, before[held_out], after[held_out], held_out_texts, n_passes),
    )


def encode_examples(sampler: EditSampler, before: Pixels, after: Pixels, instructions: Sequence[str], n_passes: int = 1) -> Batch:
    """N edits as a batch on the editor's device: images before and after, uint8 [N, H, W, 3], and N instructions."""
    most = max(1, PIXELS_PER_PASS // math.prod(before.shape[1:3]))  # to limit the autoencoder's memory
    at_once = -(-min(len(before), most) // n_passes)
    with sampler.autocast():
        chunks = split_rows(len(before), at_once)
        source, target = (
            torch.cat([sampler.parts.encode(image_tensors.from_uint8(pictures[rows]).to(sampler.device)) for rows in chunks])
            for pictures in (before, after)
        )
        text, null = sampler.parts.encode_text(instructions), sampler.parts.null_text(1)
    ids = tuple(str(i) for i in range(len(source)))
    return Batch(source, target, text, null, torch.zeros(len(source), dtype=torch.long), ids, tuple(instructions))


def split_rows(n_rows: int, at_once: int) -> list[slice]:
    """Rows in order, at most `at_once` in each chunk."""
    return [slice(start, min(start + at_once, n_rows)) for start in range(0, n_rows, at_once)]


def select_examples(batch: Batch, rows: Tensor) -> Batch:
    """The samples of a batch at these rows (int64), in that order."""
    chosen = rows.tolist()  # once: each read of a GPU's tensor waits for the GPU
    ids, instructions = (tuple(texts[i] for i in chosen) for texts in (batch.ids, batch.instructions))
    sizes = None if batch.sizes is None else batch.sizes[rows]
    text = batch.text.take(rows)
    return Batch(batch.source[rows], batch.target[rows], text, batch.null, batch.tasks, ids, instructions, sizes)
