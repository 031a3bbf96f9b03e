"""Pairs of random pictures, and the folders that the stages `pairs` and `dataset` publish."""

from pathlib import Path

import numpy as np

from emuedit.data.png import encode_png
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Caption, Pair, Verdict
from emuedit.data.shards import write_shard

INSTRUCTIONS = ("make it red", "remove the star on the left", "write A", "make it red", "add a star", "add a ring")
TASKS = ("local", "remove", "text", "local", "add", "add")
"""Task of a pair's verdict; the pair itself has another one."""
KEPT = (True, True, True, False, True, True)


def make_picture(n: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8)


def make_pair(n: int, size: tuple[int, int] = (16, 24)) -> Pair:
    """Pair n has the instruction n modulo 6, and the pictures 2 n and 2 n + 1."""
    caption = Caption(f"caption {n}", "test", n)
    return Pair(
        instruction_id=f"i{n}", parent_ids=(f"i{n}", caption.id), task="color", instruction=INSTRUCTIONS[n % 6],
        source_caption="a", target_caption="b", seed=n, model_revision="test", recipe={},
        source=encode_png(make_picture(2 * n, size)), target=encode_png(make_picture(2 * n + 1, size)), mask=None, scores={},
    )  # fmt: skip


def write_pairs(root: Path, pairs: list[Pair], per_shard: int = 4) -> tuple[list[Path], Path]:
    """Publish `data/pairs` and `data/dataset` below `root`; returns ([folder of pairs], folder of verdicts)."""
    folders = {stage: scratch_folder(root, stage, "key") for stage in ("pairs", "dataset")}
    for number, start in enumerate(range(0, len(pairs), per_shard)):
        shard = pairs[start : start + per_shard]
        write_shard(folders["pairs"] / f"shard-{number:05d}.parquet", shard, Pair)
        verdicts = [
            Verdict(
                pair.id, kept=KEPT[n % 6], task=TASKS[n % 6], reasons=() if KEPT[n % 6] else ("clip",), filters={}, scores={}
            )
            for n, pair in enumerate(shard, start)
        ]  # fmt: skip
        write_shard(folders["dataset"] / f"shard-{number:05d}.parquet", verdicts, Verdict)
    for stage, folder in folders.items():
        publish(folder, root / "data" / stage, stage, {}, {})
    return [root / "data" / "pairs"], root / "data" / "dataset"
