"""Kept pairs that pass every check of the stage `validation`, and a CLIP that knows six colours."""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emuedit.data.png import encode_png
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard

COLORS = {
    "red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "yellow": (220, 210, 40), "purple": (160, 40, 200),
    "orange": (240, 140, 30),
}  # fmt: skip
PLACES = ("garden", "kitchen", "street", "field", "harbour", "library", "station", "valley")
THINGS = ("house", "chair", "boat", "lamp", "bottle")


class ColorClip:
    """Embeds a picture as its mean colour and the place of its brightness, and a text as the first colour that it names."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        x, y = (torch.linspace(-1, 1, n_px) for n_px in (images.shape[3], images.shape[2]))
        places = [(images.mean((1, 2)) * x).mean(1), (images.mean((1, 3)) * y).mean(1)]
        return torch.nn.functional.normalize(torch.cat([images.mean((2, 3)) + 1e-3, torch.stack(places, 1)], 1), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        colors = [next((COLORS[word] for word in text.split() if word in COLORS), (255, 255, 255)) for text in texts]
        vectors = torch.nn.functional.pad(torch.tensor(colors, dtype=torch.float32) / 127.5 - 1 + 1e-3, (0, 2))
        return torch.nn.functional.normalize(vectors, dim=-1)


def make_picture(color: str, number: int, side_px: int = 32) -> np.ndarray:
    """A colour with a white square, uint8 [side_px, side_px, 3]; every number below 700 has another square."""
    pixels = np.full((side_px, side_px, 3), COLORS[color], np.uint8)
    x, y = number % 26, number // 26
    pixels[y : y + 5, x : x + 5] = 255
    return pixels


def make_pairs(n: int = 240, tasks: Sequence[str] = ("local", "remove")) -> list[Pair]:
    """Kept pairs with distinct texts and pictures, by turns of the tasks."""
    return list(_make_pairs(n, tuple(tasks)))


@cache
def _make_pairs(n: int, tasks: tuple[str, ...]) -> tuple[Pair, ...]:
    words = itertools.cycle(itertools.product(COLORS, PLACES, THINGS))
    pairs = []
    for number, (color, place, thing) in zip(range(n), words, strict=False):
        target_color = list(COLORS)[(list(COLORS).index(color) + 1) % len(COLORS)]
        pairs.append(
            Pair(
                instruction_id=f"i{number}", parent_ids=(f"i{number}",), task=tasks[number % len(tasks)],
                instruction=f"change the colour of the {thing} in the {place} from {color} to {target_color}",
                source_caption=f"a {color} {thing} stands in the middle of the {place}",
                target_caption=f"a {target_color} {thing} stands in the middle of the {place}",
                seed=number, model_revision="m", recipe={}, source=encode_png(make_picture(color, number)),
                target=encode_png(make_picture(target_color, number)), mask=None, scores={},
            )
        )  # fmt: skip
    return tuple(pairs)


def publish_kept(root: Path, pairs: Sequence[Pair], n_shards: int = 3, imported: Sequence[Pair] = (), **counts: int) -> None:
    """Publish pairs as `data/pairs`, imported ones as `imported`, and verdicts that keep them all as `data/dataset`."""
    folders = scratch_folder(root, "pairs", "k"), scratch_folder(root, "dataset", "k")
    if imported:
        scratch = scratch_folder(root, "import", "k")
        write_shard(scratch / "shard-00000.parquet", imported, Pair)
        write_shard(folders[1] / "shard-mix1-00000.parquet", [Verdict(p.id, True, p.task, (), {}, {}) for p in imported], Verdict)
        publish(scratch, root / "imported", "import", {}, {"pairs": len(imported)})
    for number in range(n_shards):
        part = pairs[number::n_shards]
        verdicts = [Verdict(pair.id, True, pair.task, (), {}, {}) for pair in part]
        write_shard(folders[0] / f"shard-{number:05d}.parquet", part, Pair)
        write_shard(folders[1] / f"shard-{number:05d}.parquet", verdicts, Verdict)
    publish(folders[0], root / "data/pairs", "pairs", {}, {"pairs": len(pairs)})
    tasks = [pair.task for pair in (*pairs, *imported)]
    per_task: dict[str, Any] = {f"{task}.{key}": tasks.count(task) for task in set(tasks) for key in ("pairs", "kept")}
    params = {"mix": {"imported": {"default": {}}} if imported else {}}
    publish(folders[1], root / "data/dataset", "dataset", params, {"kept": len(tasks), **per_task, **counts})
