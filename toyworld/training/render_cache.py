"""Rendered scenes with their truth, drawn once and shared by the trainings of the models that look."""

import hashlib
from dataclasses import fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toyworld.scenes.palette import SIZE
from toyworld.scenes.render import Truth, truth
from toyworld.scenes.scene import Scenes, numbers, scenes
from toyworld.training.mixed_pictures import mixed

POOL = 40_000  # scenes, 1.1 GB on disk
MIXED = 30_000  # pictures, 0.4 GB
_CHUNK = 1000


def rendered(folder: Path, n: int = POOL) -> tuple[Scenes, Truth]:
    """The first `n` scenes of the training split. Pixels are kept in `folder` and mapped, not read; no normals (empty).

    Another world (scenes or renderer changed) is drawn anew beside the old one.
    """
    all_scenes = scenes(numbers("train", 0, n))
    folder = folder / f"{n}-{world(all_scenes)}"
    shapes = {"images": (n, SIZE, SIZE, 3), "owner": (n, SIZE, SIZE), "disparity": (n, SIZE, SIZE)}
    types = {"images": np.uint8, "owner": np.int8, "disparity": np.float16}
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        held = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", types[name], shape) for name, shape in shapes.items()
        }
        for i in tqdm(range(0, n, _CHUNK), desc="pool"):
            known = truth(all_scenes[i : i + _CHUNK])
            for name, array in held.items():
                array[i : i + _CHUNK] = getattr(known, name)
        for array in held.values():
            array.flush()
        (folder / "done").touch()
    mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    return all_scenes, Truth(**mapped, normals=np.zeros((n, 0), np.float32))


def mixed_pictures(folder: Path, n: int = MIXED) -> np.ndarray:
    """Pictures of every kind, one a scene number of the training split; uint8 [n, 64, 64, 3], kept and mapped likewise."""
    world = hashlib.sha256(mixed(numbers("train", 0, 200)).tobytes()).hexdigest()[:8]
    file = folder / f"mixed-{n}-{world}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".tmp")
        held = np.lib.format.open_memmap(beside, "w+", np.uint8, (n, SIZE, SIZE, 3))
        for i in tqdm(range(0, n, _CHUNK), desc="pictures"):
            held[i : i + _CHUNK] = mixed(numbers("train", i, min(_CHUNK, n - i)))
        held.flush()
        beside.replace(file)
    return np.load(file, mmap_mode="r")


def world(all_scenes: Scenes) -> str:
    """Eight letters that change when the scenes or the looks of the first hundred do."""
    digest = hashlib.sha256()
    for field in fields(all_scenes):
        digest.update(np.ascontiguousarray(getattr(all_scenes, field.name)).tobytes())
    first = truth(all_scenes[:100])
    for array in (first.images, first.owner, first.disparity):
        digest.update(array.tobytes())
    return digest.hexdigest()[:8]
