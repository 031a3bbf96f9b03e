"""Encode the images and the instructions of a shard of pairs, in batches of bounded size.

Shapes: n pairs of one size, C latent channels, h and w latent sizes, T texts, L tokens of width D. At most two VAE batches of
images are decoded at a time, so memory is about the shard's PNGs and latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from emuedit.data.png import decode_png, png_size
from emuedit.data.records import Pair
from emuedit.models import image_tensors, vae_latents
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.training.batches.aspect_buckets import AspectBuckets, Placement

PIXELS_PER_BATCH = {"cpu": 64 * 64**2, "cuda": 8 * 512**2}
"""Device type -> pixels per VAE batch (other devices: as on a CPU); at least one image. Ours."""
TEXTS_PER_BATCH = 64
DECODING_THREADS = 4
"""PNG decoding releases the GIL. Ours."""
EncodedTexts = dict[str, NDArray[np.float16]]
"""`hidden` [T, L, D] and, for SDXL, `pooled` [T, P]."""


class PairEncodingError(ValueError):
    """Raised for pairs that cannot be used for training."""


class EncodesImages(Protocol):
    """What encodes images: a `TextToImageModel`, or its `ImageEncoder`."""

    @property
    def factor(self) -> int:
        """Downsampling factor of the latents."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the VAE."""
        ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, h, w]."""
        ...


@dataclass(frozen=True)
class ImageEncoder:
    """The VAE of a `TextToImageModel`, which encodes as that does."""

    vae: Any
    factor: int

    @property
    def device(self) -> torch.device:
        """Device of the VAE."""
        device: torch.device = self.vae.device
        return device

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> scaled latents, float32 [B, C, H / factor, W / factor]."""
        return vae_latents.encode(self.vae, image_tensors.check_images(images), self.factor)


def place_pairs(pairs: Sequence[Pair], buckets: AspectBuckets, factor: int) -> list[Placement]:
    """The placement of each pair, equal for source and target. Reads only the image headers.

    Raises PairEncodingError if source and target differ in size, or a side is not a multiple of the VAE's `factor`.
    """
    placements = []
    for pair in pairs:
        source, target = png_size(pair.source), png_size(pair.target)
        if source != target:
            raise PairEncodingError(
                f"want source and target of one size, got (height, width) {source} and {target} px in pair {pair.id}; "
                "scale one of them"
            )
        placement = buckets.place(source)
        if placement.size[0] % factor or placement.size[1] % factor:
            raise PairEncodingError(
                f"want sides that are multiples of {factor} px, got (height, width) {source} px in pair {pair.id}; "
                "resize images to aspect buckets"
            )
        placements.append(placement)
    return placements


def encode_images(
    pairs: Sequence[Pair], placements: Sequence[Placement], mirrored: NDArray[np.bool_], encoders: EncodesImages
) -> NDArray[np.float16]:
    """Encode source and target of n >= 1 pairs of one bucket, then, mirrored, those of the m pairs selected by `mirrored` [n].

    Returns float16 [n + m, 2, C, h, w]. The next batch is decoded while the VAE encodes. Raises
    PairEncodingError for latents that are not finite in float16.
    """
    budget_px = PIXELS_PER_BATCH.get(encoders.device.type, PIXELS_PER_BATCH["cpu"])
    images_per_batch = max(1, budget_px // math.prod(placements[0].size))
    pairs_per_batch = max(1, images_per_batch // 4)
    batches = [range(i, min(i + pairs_per_batch, len(pairs))) for i in range(0, len(pairs), pairs_per_batch)]
    plain, flipped = [], []
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        decode = [pool.submit(_decode, pairs[i], placements[i]) for i in batches[0]]
        for rows, following in zip(batches, [*batches[1:], range(0)], strict=True):
            decoded = np.stack([future.result() for future in decode])  # [b, 2, H, W, 3]
            decode = [pool.submit(_decode, pairs[i], placements[i]) for i in following]
            selected = mirrored[rows.start : rows.stop]
            both = np.concatenate([decoded, decoded[selected][:, :, :, ::-1]])
            images = both.reshape(-1, *both.shape[2:])
            parts = [_encode(images[i : i + images_per_batch], encoders) for i in range(0, len(images), images_per_batch)]
            z = np.concatenate(parts)
            z = z.reshape(*both.shape[:2], *z.shape[1:])
            not_finite = ~np.isfinite(z).reshape(len(z), -1).all(1)
            if not_finite.any():
                pair = pairs[[*rows, *np.array(rows)[selected].tolist()][int(not_finite.argmax())]]
                raise PairEncodingError(
                    f"want finite latents in float16, got others for pair {pair.id}; inspect it, or use train.dtype float32"
                )
            plain.append(z[: len(rows)])
            flipped.append(z[len(rows) :])
    return np.concatenate([*plain, *flipped])


def encode_texts(texts: Sequence[str], encoders: TextToImageModel) -> EncodedTexts:
    """Encode T >= 1 texts."""
    starts = range(0, len(texts), TEXTS_PER_BATCH)
    parts = [to_float16(encoders.encode_text(texts[i : i + TEXTS_PER_BATCH])) for i in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def to_float16(text: TextCondition) -> EncodedTexts:
    """Convert encoded texts to float16 arrays."""
    tensors = {"hidden": text.hidden} | ({} if text.pooled is None else {"pooled": text.pooled})
    return {name: tensor.to("cpu", torch.float16).numpy() for name, tensor in tensors.items()}


def _decode(pair: Pair, placement: Placement) -> NDArray[np.uint8]:
    """Decode source and target at the size of their bucket, [2, H, W, 3]."""
    return np.stack([placement.apply(decode_png(png)) for png in (pair.source, pair.target)])


def _encode(pictures: NDArray[np.uint8], encoders: EncodesImages) -> NDArray[np.float16]:
    """uint8 [B, H, W, 3] -> latents float16 [B, C, h, w]; values beyond float16's range become infinite."""
    images = image_tensors.from_uint8(pictures)
    z = encoders.encode(images.to(encoders.device, memory_format=torch.channels_last))
    return z.to("cpu", torch.float16).numpy()
