"""Pretraining corpus of the base model, in addition to captioned scenes: exact results of every task, with two texts each.

A text-to-image model pretrained on web data has seen instructions, boxes, masks, line drawings and depth maps. This corpus
replaces that part of the web data. Each image has the instruction that leads to it and its caption.
The corpus has only results: no images from before an edit, and no held-out tasks.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from tqdm import tqdm

from emuedit.models.image_tensors import from_uint8
from toyworld.edits import exact_edits, toy_tasks
from toyworld.scenes import render
from toyworld.training.training_run import autocast, device

PER_TASK = 1500
FIRST_SCENE = 50_000
"""The first scene of the corpus in the training split. Earlier ones are the captioned scenes of the base model."""
_CHUNK = 250


@dataclass(frozen=True)
class CorpusPart:
    """N images as latents, and the texts of each."""

    z: np.ndarray  # float16 [N, 8, 16, 16]
    objects: np.ndarray  # bool [N, 16, 16]: where objects are, or the region of a local edit
    texts: list[list[str]]  # [N] lists of one or two texts: the instruction and the caption of the result

    def __len__(self) -> int:
        return len(self.texts)


def to_latent_mask(mask: np.ndarray) -> np.ndarray:
    """Reduce a pixel mask to latent resolution: bool [N, 64, 64] -> [N, 16, 16], true where any pixel is."""
    return np.asarray(mask.reshape(-1, 16, 4, 16, 4).any((2, 4)))


def encode_latents(vae: AutoencoderTiny, images: np.ndarray) -> np.ndarray:
    """Encode images: uint8 [N, 64, 64, 3] -> float16 latents [N, 8, 16, 16]."""
    x = from_uint8(images).to(device(), memory_format=torch.channels_last)
    with torch.inference_mode(), autocast():
        return vae.encode(x).latents.float().cpu().numpy().astype(np.float16)


def content_digest(vae: AutoencoderTiny, *arrays: np.ndarray) -> str:
    """Eight hex digits of a hash of the arrays and of the VAE's weights."""
    digest = hashlib.blake2b(digest_size=4)
    for array in (*arrays, *(value.cpu().numpy() for value in vae.state_dict().values())):
        digest.update(array.tobytes())
    return digest.hexdigest()


def build_corpus(vae: AutoencoderTiny, folder: Path, per_task: int = PER_TASK) -> Path:
    """Encode `per_task` results of each trained task and return their subfolder of `folder`.

    An existing subfolder is reused if the VAE and the first four edits of every task are the same.
    """
    samples = [exact_edits.build_edits(name, "train", FIRST_SCENE, 4) for name in toy_tasks.TRAINED]
    sample_images = np.concatenate([sample.exact for sample in samples])
    sample_texts = np.array([text for sample in samples for text in sample.instructions])
    folder = folder / f"web-{per_task}-{content_digest(vae, sample_images, sample_texts)}"
    if (folder / "texts.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(device())
    z, objects, texts = [], [], []
    for name in tqdm(toy_tasks.TRAINED, "pretraining corpus"):
        for start in range(0, per_task, _CHUNK):
            chunk = exact_edits.build_edits(name, "train", FIRST_SCENE + start, min(_CHUNK, per_task - start))
            changed = (chunk.exact != chunk.before).any(-1)
            is_local = changed.mean((1, 2), keepdims=True) < 0.5
            z.append(encode_latents(vae, chunk.exact))
            objects.append(to_latent_mask((changed & is_local) | (render.truth(chunk.source).owner >= 0)))
            texts += [sorted({a, b}) for a, b in zip(chunk.instructions, chunk.output_captions, strict=True)]
    np.save(folder / "latents.npy", np.concatenate(z))
    np.save(folder / "objects.npy", np.concatenate(objects))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def load_corpus(folder: Path) -> CorpusPart:
    """Read the folder that `build_corpus` wrote; latents are memory-mapped."""
    texts = json.loads((folder / "texts.json").read_text())
    return CorpusPart(np.load(folder / "latents.npy", mmap_mode="r"), np.load(folder / "objects.npy"), texts)
