"""Small pairs with scores, and what the stage `dataset` makes of them."""

from pathlib import Path
from typing import Any

import numpy as np

from emuedit.data.png import encode_png
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard
from emuedit.stages import dataset
from emuedit.stages.dataset import DatasetParams

PICTURE = encode_png(np.zeros((2, 3, 3), np.uint8))
FILTERS: dict[str, Any] = {
    "default": {},
    "local": {"dino": {"min": 0.5, "max": 0.9}, "l1": {"max": 0.1}},
    "remove": {"l1": {"max": 0.2}},
}


def make_params(**changes: Any) -> DatasetParams:
    values = {"filters": FILTERS, "rank_by": "direction", "keep_per_instruction": 1, "sheet_pairs": 2, "reassignment": None}
    return DatasetParams.model_validate(values | changes)


def make_pair(instruction: str, task: str, candidate: int, **scores: float | None) -> Pair:
    return Pair(
        instruction_id=instruction, parent_ids=(instruction,), task=task, instruction="go", source_caption="a",
        target_caption="b", seed=candidate, model_revision="m", recipe={"candidate": candidate}, source=PICTURE, target=PICTURE,
        mask=None, scores={"dino": None, "l1": None, "direction": None, **scores},
    )  # fmt: skip


def publish_pairs(root: Path, *shards: list[Pair]) -> list[Pair]:
    scratch = scratch_folder(root, "pairs", "f")
    for number, records in enumerate(shards):
        write_shard(scratch / f"shard-{number:05d}.parquet", records, Pair)
    publish(scratch, root / dataset.IN, "pairs", {}, {})
    return [record for records in shards for record in records]


def publish_toy_pairs(root: Path) -> list[Pair]:
    """Three shards: two pairs of one `local` instruction, two of one `depth` instruction, none."""
    local = {"dino": 0.6, "l1": 0.05, "direction": 0.1}, {"dino": 0.2, "l1": 0.5, "direction": 0.2}
    first = [make_pair("a", "local", candidate, **scores) for candidate, scores in enumerate(local)]
    return publish_pairs(root, first, [make_pair("b", "depth", 0), make_pair("b", "depth", 1)], [])


def read_verdicts(root: Path) -> list[Verdict]:
    return list(read_folder(root / dataset.OUT, Verdict, verify=True))
