"""Task packs: a task learned by inversion, in one small safetensors file for one editor.

The file has the task embedding and, if one was learned, the task's adapter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emuedit.data.atomic_file import replacing
from emuedit.editor.package_layout import advise_on_taken_name
from emuedit.editor.task_adapter import TaskAdapter

METADATA_KEY = "emuedit.pack"
_ADAPTER = "adapter."
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TENSORS = ("v", "adapter")
_STORED_NAMES = {"editor_fingerprint": "base"}
"""Field -> its name in the file, where they differ."""
_LEARN_AGAIN = "learn it again on this editor (`emuedit learn`, or the stage inversion)"


class TaskPackError(ValueError):
    """Raised for a file that is not a task pack and for a pack made for another editor."""


def check_name(name: object) -> str:
    """The name of a task, and of the file of its pack: a letter and at most 63 of a-z, 0-9 and _. Raises TaskPackError for any
    other."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TaskPackError(
            "want a name of at most 64 lower-case letters, digits and _, the first a letter, such as white_background; "
            f"got {name!r}"
        )
    return name


@dataclass(frozen=True)
class TaskPack:
    """A task in a file."""

    name: str
    """See `check_name`."""
    v: Tensor  # the task embedding [D_v]
    editor_fingerprint: str
    """Fingerprint of its editor; stored as `base`."""
    n_examples: int
    record: dict[str, Any]
    """Training params and results."""
    adapter: TaskAdapter | None = None
    """The task's updates of the U-Net; None: only the embedding."""
    instructions: tuple[str, ...] = ()
    """Its example instructions, from which the task predictor learns the task."""
    change_threshold: float | None = None
    """Change threshold of its edits, chosen on examples (`training/learned_threshold.py`); None: that of the settings."""


def save(pack: TaskPack, file: str | Path) -> None:
    """Write the file atomically."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_STORED_NAMES.get(key, key): value for key, value in vars(pack).items() if key not in _TENSORS}
    tensors = {"v": pack.v}
    if pack.adapter is not None:
        tensors |= {f"{_ADAPTER}{name}": tensor for name, tensor in pack.adapter.tensors().items()}
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as partial:
        save_file(stored, partial, metadata={METADATA_KEY: json.dumps(metadata)})


def load(file: str | Path) -> TaskPack:
    """Read a pack. Raises TaskPackError, which names the file, for an invalid file."""
    with _reading(file) as content:
        metadata = json.loads((content.metadata() or {})[METADATA_KEY])
        tensors = {name.removeprefix(_ADAPTER): content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        v = tensors.pop("v")
        adapter = TaskAdapter.from_tensors(tensors) if tensors else None
        editor_fingerprint = metadata.pop(_STORED_NAMES["editor_fingerprint"])
        pack = TaskPack(v=v, adapter=adapter, editor_fingerprint=editor_fingerprint, **metadata)
        _check_types(pack)
        return replace(pack, instructions=tuple(pack.instructions))


def _check_types(pack: TaskPack) -> None:
    """Raise ValueError for values that no pack of `save` has: files come from others."""
    check_name(pack.name)
    if not isinstance(pack.editor_fingerprint, str) or not isinstance(pack.n_examples, int):
        raise ValueError("want a text as base and a whole number as n_examples")
    if pack.v.ndim != 1 or not pack.v.isfinite().all():
        raise ValueError(f"want a task embedding of finite numbers [D_v], got the shape {tuple(pack.v.shape)}")
    if not isinstance(pack.instructions, list | tuple) or not all(isinstance(text, str) for text in pack.instructions):
        raise ValueError(f"want instructions as a list of texts, got {str(pack.instructions)[:80]!r}")
    if pack.change_threshold is not None and not isinstance(pack.change_threshold, int | float):
        raise ValueError(f"want a number as change threshold, got {str(pack.change_threshold)[:80]!r}")


def read_editor_fingerprint(file: str | Path) -> str:
    """The fingerprint of a pack's editor; reads only the file's header.

    Raises TaskPackError, which names the file, for an invalid file.
    """
    with _reading(file) as content:
        metadata = json.loads((content.metadata() or {})[METADATA_KEY])
        return str(metadata[_STORED_NAMES["editor_fingerprint"]])


@contextmanager
def _reading(file: str | Path) -> Iterator[Any]:
    """An open safetensors file. Errors of the block, which reads a pack from it, become a TaskPackError."""
    if not Path(file).is_file():
        raise TaskPackError(f"want a task pack, got no file at {file}; run the stage inversion")
    try:
        with safe_open(str(file), framework="pt") as content:
            yield content
    except (SafetensorError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise TaskPackError(f"{file} is not a task pack ({error}); {_LEARN_AGAIN}") from error


def check_replaceable(file: Path, editor_fingerprint: str) -> None:
    """Raise TaskPackError if `file` exists and is not a pack of the editor with this fingerprint, which may be replaced."""
    if not file.exists():
        return
    try:
        other = read_editor_fingerprint(file)
    except TaskPackError:
        content = "is not a task pack"
    else:
        if other == editor_fingerprint:
            return
        content = f"is the pack of another editor, {other}; this one is {editor_fingerprint}"
    raise TaskPackError(f"want a new name, got {file.stem!r}: {file} {content}; choose another name, or move that file away")


def fingerprint(v: Tensor, adapter: TaskAdapter | None, change_threshold: float | None = None) -> str:
    """16 hex digits (blake2b) of a task: its embedding v [D_v], adapter and change threshold."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (v, *(() if adapter is None else adapter.tensors().values())):
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    if change_threshold is not None:
        digest.update(repr(float(change_threshold)).encode())
    return digest.hexdigest()


def check(pack: TaskPack, editor_fingerprint: str, tasks: Sequence[str] = ()) -> None:
    """Raise TaskPackError unless the pack was made for the network with this fingerprint, and its name is none of `tasks`."""
    if pack.name in tasks:
        advice = advise_on_taken_name(pack.name)
        raise TaskPackError(f"want a pack of a new task, got {pack.name!r}, which the editor already has; {advice}")
    if pack.editor_fingerprint != editor_fingerprint:
        raise TaskPackError(
            f"want a pack for the editor {editor_fingerprint}, got {pack.name!r}, made for {pack.editor_fingerprint}: an "
            f"embedding works only with its own network; {_LEARN_AGAIN}"
        )
