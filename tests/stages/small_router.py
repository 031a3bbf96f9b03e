"""Instructions and params of a small training of the stage `router`."""

from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.predictor.non_instructions import NON_INSTRUCTIONS, load_non_instructions
from emuedit.stages import router
from emuedit.stages.router import RouterParams
from tests.repository import ROOT
from tests.stages.workspace import load_params

FRAMES = (
    "{} the {}",
    "please {} the {}",
    "{} the {} now",
    "can you {} the {}",
    "I would like to {} the {}",
    "{} the {} for me please",
)
OBJECTS = ("star", "ring", "square", "cross", "circle")
SMALL = {
    "device": "cpu", "epochs": 3, "batch_size": 16, "lr": 5e-3, "warmup_steps": 4, "folds": 2, "non_instruction_repeats": 1,
}  # fmt: skip

T5 = ROOT / "toyworld/weights/t5"


def make_params(**changes: Any) -> RouterParams:
    return load_params(RouterParams, "router", **SMALL | changes)


def publish_instructions(
    root: Path, n_captions: int = 60, tasks: tuple[str, ...] = ("sketch", "remove"), wrong: str | None = None
) -> None:
    """`wrong`: the frame whose instructions all have the other label."""
    others = dict(zip(tasks, reversed(tasks), strict=True))
    instructions = []
    for i, frame, name in zip(range(n_captions), cycle(FRAMES), cycle(OBJECTS), strict=False):
        for task in tasks:
            label = others[task] if frame == wrong else task
            text = frame.format(task, name)
            instructions.append(Instruction(f"c{i}", label, text, f"a {name}", "b", None, None, False, i, "w", ""))
    scratch = scratch_folder(root, "instructions", "f")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / router.IN, "instructions", {}, {})


def publish_little(
    root: Path, n_captions: int = 12, texts_per_kind: int = 1, wrong: str | None = None, **changes: Any
) -> RouterParams:
    """Publish instructions. The params for a training on them and on a few non-instructions of each kind."""
    publish_instructions(root, n_captions, wrong=wrong)
    kinds = load_non_instructions(ROOT / NON_INSTRUCTIONS, "fit")
    file = root / "non_instructions.yaml"
    file.write_text(yaml.safe_dump({kind: {"fit": texts[:texts_per_kind]} for kind, texts in kinds.items()}))
    return make_params(non_instructions=str(file), **changes)
