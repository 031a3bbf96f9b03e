"""Measurements of a seeded sample of kept pairs' images: size, mode, colour, duplicates, and CLIP embeddings.

Shapes: N sampled pairs, B pairs of a batch, D width of CLIP's space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from emuedit.data import look_alikes
from emuedit.data.image_io import Pixels
from emuedit.data.png import PngError, decode_png, png_size
from emuedit.data_checks.pair_profile import Embeddings
from emuedit.models import image_tensors
from emuedit.runtime import seed_for
from emuedit.training.batches.kept_pairs import KeptPairs, PairShard

SIDES = ("source", "target")
MAX_EXAMPLES = 20
PAIRS_PER_BATCH, PIXELS_PER_BATCH = 64, 2 * 64 * 256**2
"""Limits of a batch, whose images are decoded and embedded together: measuring needs about 30 bytes per pixel. Ours."""
_ROWS_PER_READ = 16


class Embedder(Protocol):
    """The methods of `models.clip.ClipScorer` that are used here."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> unit vectors [B, D]."""

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """B texts -> unit vectors [B, D]."""


@dataclass
class PictureMeasures:
    """Measurements of the sampled pairs added so far."""

    min_side_px: int
    ids: list[str] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    n_pairs: int = 0
    n_damaged: int = 0
    thumbnails: list[Pixels] = field(default_factory=list)
    embeddings: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    """`source` and `target` -> caption of each embedding; empty for an imported image without a caption."""
    vector_of: dict[bytes, torch.Tensor] = field(default_factory=dict)
    """Hash of an image -> its vector: equal images have equal vectors, whatever else is in their batch."""

    def add(self, rows: Sequence[Mapping[str, Any]], clip: Embedder) -> None:
        """Measure B pairs, given as rows of a shard."""
        pictures: list[dict[str, Pixels]] = []
        readable = []
        for row in rows:
            self.n_pairs += 1
            try:
                before_after = {side: decode_png(row[side]["bytes"]) for side in SIDES}
            except PngError as error:
                self.n_damaged += 1
                self._note("damaged", f"{row['id']} {error}")
                continue
            self._measure_pair(row["id"], before_after)
            pictures.append({side: _to_rgb(pixels) for side, pixels in before_after.items()})
            readable.append(row)
        for side in SIDES:
            self.captions.setdefault(side, []).extend(row[f"{side}_caption"] for row in readable)
            keys = [hashlib.blake2b(row[side]["bytes"], digest_size=16).digest() for row in readable]
            new = {key: picture[side] for key, picture in zip(keys, pictures, strict=True) if key not in self.vector_of}
            self.vector_of |= dict(zip(new, embed(list(new.values()), clip), strict=True))
            self.embeddings.setdefault(side, []).extend(self.vector_of[key] for key in keys)

    def _measure_pair(self, pair_id: str, pictures: Mapping[str, Pixels]) -> None:
        before, after = (pictures[side] for side in SIDES)
        sizes = [picture.shape[:2] for picture in (before, after)]
        if sizes[0] != sizes[1] or min(map(min, sizes)) < self.min_side_px:
            self._count("picture_sizes", f"{pair_id} {sizes[0][1]} x {sizes[0][0]}, {sizes[1][1]} x {sizes[1][0]}")
        is_rgb = all(picture.ndim == 3 and picture.shape[2] == 3 for picture in (before, after))
        if not is_rgb or not any(_has_colour(picture) for picture in (before, after)):
            self._count("picture_modes", pair_id)
        if np.array_equal(before, after):
            self._count("unchanged_pictures", pair_id)
        self.thumbnails.append(np.stack([look_alikes.thumbnail(picture) for picture in (before, after)]))
        self.ids.append(pair_id)

    def figures(self, clip: Embedder) -> dict[str, float]:
        """Check -> measured value, for images; empty without a readable image."""
        n = len(self.ids)
        if not n:
            return {}
        for row in equal_rows(np.stack(self.thumbnails)):
            self._count("equal_pictures", self.ids[row])
        names = ("picture_sizes", "picture_modes", "unchanged_pictures", "equal_pictures")
        figures = {name: self.counts.get(name, 0) / n for name in names}
        measured = [match for side in SIDES if (match := self._match_captions(side, clip)) is not None]
        return figures | ({"picture_text": sum(measured) / len(measured)} if measured else {})

    @property
    def n_without_caption(self) -> int:
        """Number of images without a caption."""
        return sum(not caption.strip() for captions in self.captions.values() for caption in captions)

    def _match_captions(self, side: str, clip: Embedder) -> float | None:
        """`caption_match` of the images that have a caption; None without two captions."""
        captioned = [
            (image, text) for image, text in zip(self.embeddings[side], self.captions[side], strict=True) if text.strip()
        ]
        if not captioned:
            return None
        images, captions = zip(*captioned, strict=True)
        return caption_match(torch.stack(images), clip.embed_texts(captions).cpu(), captions)

    def vectors(self) -> Embeddings:
        """The embeddings, float32 [N, D] for each side."""
        return {
            side: torch.stack(rows).numpy() if rows else np.zeros((0, 1), np.float32) for side, rows in self.embeddings.items()
        }

    def _count(self, check: str, example: str) -> None:
        self.counts[check] = self.counts.get(check, 0) + 1
        self._note(check, example)

    def _note(self, check: str, example: str) -> None:
        examples = self.examples.setdefault(check, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)


def choose_sample(shards: Sequence[PairShard], kept: KeptPairs, n_pairs: int, n_shards: int) -> dict[PairShard, set[str]]:
    """Shard -> ids of the sampled kept pairs: at most `n_pairs`, from at most `n_shards` shards.

    Chosen by hashes of names and ids: the sample is reproducible, and adding a few pairs changes it only slightly.
    """
    chosen = sorted(shards, key=lambda shard: seed_for("validation", shard.path.parent.name, shard.path.name))[:n_shards]
    ids = [(pair_id, shard) for shard in chosen for pair_id in kept.tasks_of(shard.pair_ids())]
    sample: dict[PairShard, set[str]] = {}
    for pair_id, shard in sorted(ids, key=lambda item: seed_for("validation", item[0]))[:n_pairs]:
        sample.setdefault(shard, set()).add(pair_id)
    return {shard: sample[shard] for shard in shards if shard in sample}


def read_sampled(shard: PairShard, ids: set[str]) -> Iterator[dict[str, Any]]:
    """The rows of these pairs in a shard, read in small batches."""
    columns = ["id", "source_caption", "target_caption", *SIDES]
    for batch in pq.ParquetFile(shard.path).iter_batches(batch_size=_ROWS_PER_READ, columns=columns):
        rows = [number for number, pair_id in enumerate(batch["id"].to_pylist()) if pair_id in ids]
        yield from batch.take(pa.array(rows, pa.int64())).to_pylist()


def in_batches(rows: Iterable[Mapping[str, Any]], divisor: int = 1) -> Iterator[list[Mapping[str, Any]]]:
    """Rows of pairs in batches of bounded memory: at most PAIRS_PER_BATCH pairs and PIXELS_PER_BATCH pixels, at least one pair.

    divisor: for smaller batches. Only the headers of the images are read.
    """
    batch: list[Mapping[str, Any]] = []
    n_pixels = 0
    for row in rows:
        added = _count_pixels(row)
        if batch and (len(batch) >= PAIRS_PER_BATCH // divisor or n_pixels + added > PIXELS_PER_BATCH // divisor):
            yield batch
            batch, n_pixels = [], 0
        batch.append(row)
        n_pixels += added
    if batch:
        yield batch


def _count_pixels(row: Mapping[str, Any]) -> int:
    """Pixels of both images of a pair; 0 for a damaged one."""
    try:
        return sum(math.prod(png_size(row[side]["bytes"])) for side in SIDES)
    except PngError:
        return 0


def embed(pictures: Sequence[Pixels], clip: Embedder) -> list[torch.Tensor]:
    """The unit vector [D] of each image uint8 [H, W, 3], on the CPU; images of one size are embedded together."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(number)
    vectors: dict[int, torch.Tensor] = {}
    for numbers in by_size.values():
        batch = image_tensors.from_uint8(np.stack([pictures[number] for number in numbers]))
        vectors |= dict(zip(numbers, clip.embed_images(batch).float().cpu(), strict=True))
    return [vectors[number] for number in range(len(pictures))]


def equal_rows(thumbnails: Pixels) -> list[int]:
    """Indices of pairs that look like an earlier one; thumbnails uint8 [N, 2, h, w, 3] of before and after."""
    is_equal = np.tril(look_alikes.match(thumbnails, thumbnails, look_alikes.EQUAL_LEVELS), k=-1)
    return [int(row) for row in np.flatnonzero(is_equal.any(1))]


def caption_match(images: torch.Tensor, texts: torch.Tensor, captions: Sequence[str]) -> float | None:
    """Share in [0, 1] of (image, other caption) pairs where the image is nearer to its own caption; None for one caption.

    images, texts: unit vectors [N, D]. 0.5 is chance. This is the area under the ROC curve of CLIP similarity. Ours.
    """
    similarity = images @ texts.T  # [N, N]
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    codes = torch.tensor([numbers[caption] for caption in captions])
    is_other = codes[:, None] != codes[None, :]
    if not is_other.any():
        return None
    difference = similarity.diagonal()[:, None] - similarity
    wins = (difference > 0).float() + 0.5 * (difference == 0).float()
    return float(wins[is_other].mean())


def _to_rgb(picture: Pixels) -> Pixels:
    """uint8 [H, W], [H, W, 3] or [H, W, 4] -> [H, W, 3]."""
    return np.asarray(Image.fromarray(picture).convert("RGB"))


def _has_colour(picture: Pixels) -> bool:
    channels = _to_rgb(picture)
    return bool((channels[..., :1] != channels).any())
