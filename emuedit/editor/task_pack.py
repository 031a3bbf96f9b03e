"""Task packs: a task learned by inversion, in one small safetensors file that belongs to one editor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

METADATA_KEY = "emuedit.pack"


class TaskPackError(ValueError):
    """Raised for a file that is not a task pack and for a pack made for another editor."""


@dataclass(frozen=True)
class TaskPack:
    """A task in a file."""

    name: str
    v: Tensor  # the task embedding [D_v]
    base: str
    """`weights` of the editor it was learned on."""
    n_examples: int
    record: dict[str, Any]
    """How it was learned: params and figures."""


def save(pack: TaskPack, file: str | Path) -> None:
    """Write the file as a whole or not at all."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {key: value for key, value in vars(pack).items() if key != "v"}
    partial = file.with_name(f".{file.name}.part")
    save_file({"v": pack.v.detach().float().cpu().contiguous()}, partial, metadata={METADATA_KEY: json.dumps(metadata)})
    partial.replace(file)


def load(file: str | Path) -> TaskPack:
    """Read a pack. Raises TaskPackError, which names the file, for anything else."""
    if not Path(file).is_file():
        raise TaskPackError(f"want a task pack, got no file at {file}; run the stage inversion")
    try:
        with safe_open(str(file), framework="pt") as content:
            metadata, v = json.loads((content.metadata() or {})[METADATA_KEY]), content.get_tensor("v")
        return TaskPack(v=v, **metadata)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TaskPackError(f"{file} is not a task pack ({error}); run the stage inversion") from error


def check(pack: TaskPack, weights: str) -> None:
    """Raise TaskPackError unless the pack was made for the network with this fingerprint."""
    if pack.base != weights:
        raise TaskPackError(
            f"want a pack for the editor {weights}, got {pack.name!r}, made for {pack.base}: an embedding means nothing to other "
            "weights; run the stage inversion on this editor"
        )
