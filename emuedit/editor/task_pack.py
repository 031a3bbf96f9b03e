"""Task packs: a task that inversion learned, in one small safetensors file that fits one editor and says which."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from emuedit.editor.sampling import Editor


KEY = "emuedit.pack"


class PackError(ValueError):
    """Raised for a file that is no task pack and for a pack made for another editor."""


@dataclass(frozen=True)
class Pack:
    """A task in a file."""

    name: str
    v: Tensor  # [D_v]
    base: str
    """`weights` of the editor it was learned on."""
    n_examples: int
    record: dict[str, Any]
    """How it was learned: knobs and figures."""


def save(pack: Pack, file: str | Path) -> None:
    """Write it whole or not at all."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    note = {key: value for key, value in vars(pack).items() if key != "v"}
    partial = file.with_name(f".{file.name}.part")
    save_file({"v": pack.v.detach().float().cpu().contiguous()}, partial, metadata={KEY: json.dumps(note)})
    partial.replace(file)


def load(file: str | Path) -> Pack:
    """Read a pack. Raises PackError, which names the file, for anything else."""
    if not Path(file).is_file():
        raise PackError(f"want a task pack, got no file at {file}; run the station inversion")
    try:
        with safe_open(str(file), framework="pt") as content:
            note, v = json.loads((content.metadata() or {})[KEY]), content.get_tensor("v")
        return Pack(v=v, **note)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PackError(f"{file} is no task pack ({error}); run the station inversion") from error


def check(pack: Pack, weights: str) -> None:
    """Raise PackError unless the pack was made for the network with this fingerprint."""
    if pack.base != weights:
        raise PackError(
            f"want a pack for the editor {weights}, got {pack.name!r}, made for {pack.base}: an embedding means nothing to other "
            "weights; run the station inversion on this editor"
        )


def add(editor: Editor, file: str | Path) -> Pack:
    """`Editor.add_pack` by another name."""
    return editor.add_pack(file)
