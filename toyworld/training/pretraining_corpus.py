"""What the toy world's web holds besides captioned scenes: pictures of every task's results, beside what was said of them.

A base_model that only ever read "a red circle" does not read "make the circle red"; one that read the web does, and has seen
boxes, masks, line drawings and depth maps. This stands for that web. It shows results alone: never what was there before an
edit, never a held-out task.
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
from toyworld.edits import exact_edits
from toyworld.scenes import render
from toyworld.training.training_run import bf16, device

PER_TASK = 1500
FROM = 50_000
"""Scene numbers of the training split from here on: behind those of the scenes that are learned with captions."""
_CHUNK = 250


@dataclass(frozen=True)
class Seen:
    """N pictures, encoded, and the texts that stand beside each."""

    z: np.ndarray  # float16 [N, 8, 16, 16]
    objects: np.ndarray  # bool [N, 16, 16]: where objects are, or what the edit drew
    texts: list[list[str]]  # [N] of one or two: the instruction that led here, and what is seen

    def __len__(self) -> int:
        return len(self.texts)


def cells(mask: np.ndarray) -> np.ndarray:
    """Pixels to latent cells: bool [N, 64, 64] -> [N, 16, 16], true where any pixel is."""
    return np.asarray(mask.reshape(-1, 16, 4, 16, 4).any((2, 4)))


def encoded(vae: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, 64, 64, 3] -> float16 latents [N, 8, 16, 16]."""
    x = from_uint8(pictures).to(device(), memory_format=torch.channels_last)
    with torch.inference_mode(), bf16():
        return vae.encode(x).latents.float().cpu().numpy().astype(np.float16)


def marked(vae: AutoencoderTiny, *looks: np.ndarray) -> str:
    """Eight letters that change with the autoencoder and with how the world looks."""
    digest = hashlib.blake2b(digest_size=4)
    for array in (*looks, *(value.cpu().numpy() for value in vae.state_dict().values())):
        digest.update(array.tobytes())
    return digest.hexdigest()


def gather(vae: AutoencoderTiny, folder: Path, per_task: int = PER_TASK) -> Path:
    """Where results of all sixteen tasks are kept, `per_task` each: made once, below `folder`."""
    first = [exact_edits.edits(name, "train", FROM, 4) for name in exact_edits.names()]
    looks = [np.concatenate([one.exact for one in first]), np.array([text for one in first for text in one.instructions])]
    folder = folder / f"web-{per_task}-{marked(vae, *looks)}"
    if (folder / "texts.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(device())
    z, objects, texts = [], [], []
    for name in tqdm(exact_edits.names(), "web"):
        for start in range(0, per_task, _CHUNK):
            some = exact_edits.edits(name, "train", FROM + start, min(_CHUNK, per_task - start))
            changed = (some.exact != some.before).any(-1)
            local = changed.mean((1, 2), keepdims=True) < 0.5
            z.append(encoded(vae, some.exact))
            objects.append(cells((changed & local) | (render.truth(some.source).owner >= 0)))
            texts += [sorted({a, b}) for a, b in zip(some.instructions, some.output_captions, strict=True)]
    np.save(folder / "latents.npy", np.concatenate(z))
    np.save(folder / "objects.npy", np.concatenate(objects))
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def seen(folder: Path) -> Seen:
    """What `gather` kept there."""
    texts = json.loads((folder / "texts.json").read_text())
    return Seen(np.load(folder / "latents.npy", mmap_mode="r"), np.load(folder / "objects.npy"), texts)
