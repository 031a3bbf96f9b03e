"""The render cache: training images with their ground truth, rendered once and shared by several trainings."""

import hashlib
from dataclasses import fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toyworld.scenes.palette import SIZE
from toyworld.scenes.render import GroundTruth, truth
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers
from toyworld.training.mixed_pictures import render_mixed

N_SCENES = 40_000  # 1.1 GB on disk
N_MIXED = 30_000  # images, 0.4 GB on disk
_CHUNK = 1000


def cache_folder(scratch: Path) -> Path:
    """The render cache shared by the trainings whose scratch folders are next to each other."""
    return scratch.parent / "pool"


def load_scenes(folder: Path, n: int = N_SCENES) -> tuple[Scenes, GroundTruth]:
    """The first `n` scenes of the training split with their ground truth; rendered into `folder` on the first call.

    The arrays are memory-mapped. Normals are not stored: that array is empty, [n, 0].
    If the scenes or the renderer change, the images are rendered again into another subfolder.
    """
    scenes = generate_scenes(scene_numbers("train", 0, n))
    folder = folder / f"{n}-{scenes_digest(scenes)}"
    shapes = {"images": (n, SIZE, SIZE, 3), "owner": (n, SIZE, SIZE), "disparity": (n, SIZE, SIZE)}
    dtypes = {"images": np.uint8, "owner": np.int8, "disparity": np.float16}
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtypes[name], shape) for name, shape in shapes.items()
        }
        for i in tqdm(range(0, n, _CHUNK), desc="render cache"):
            chunk_truth = truth(scenes[i : i + _CHUNK])
            for name, array in arrays.items():
                array[i : i + _CHUNK] = getattr(chunk_truth, name)
        for array in arrays.values():
            array.flush()
        (folder / "done").touch()
    mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    return scenes, GroundTruth(**mapped, normals=np.zeros((n, 0), np.float32))


def load_mixed(folder: Path, n: int = N_MIXED) -> np.ndarray:
    """Images of every kind for the first `n` scene numbers of the training split; uint8 [n, 64, 64, 3], memory-mapped.

    They are rendered into `folder` on the first call, and again into another file if the first 200 of them change.
    """
    digest = hashlib.sha256(render_mixed(scene_numbers("train", 0, 200)).tobytes()).hexdigest()[:8]
    file = folder / f"mixed-{n}-{digest}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        images = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (n, SIZE, SIZE, 3))
        for i in tqdm(range(0, n, _CHUNK), desc="mixed images"):
            images[i : i + _CHUNK] = render_mixed(scene_numbers("train", i, min(_CHUNK, n - i)))
        images.flush()
        unfinished.replace(file)
    return np.load(file, mmap_mode="r")


def scenes_digest(scenes: Scenes) -> str:
    """Eight hex digits of a hash of all scenes and of the renderings of the first hundred."""
    digest = hashlib.sha256()
    for field in fields(scenes):
        digest.update(np.ascontiguousarray(getattr(scenes, field.name)).tobytes())
    first = truth(scenes[:100])
    for array in (first.images, first.owner, first.disparity):
        digest.update(array.tobytes())
    return digest.hexdigest()[:8]
