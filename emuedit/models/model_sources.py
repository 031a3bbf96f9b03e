"""Where a network comes from: the table of the kinds of folder, and one check that names what was found instead."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Kind:
    """One kind of model folder: the file that announces it, and which values of `key` in it are welcome."""

    what: str
    file: str
    key: str | None = None
    accepts: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = f" with {self.key} {' | '.join(self.accepts)}" if self.accepts else ""
        return f"{self.what} folder with {self.file}{values}"


BASE_MODEL = Kind(
    "a diffusers text-to-image pipeline",
    "model_index.json", "_class_name", ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
)  # fmt: skip
DETECTOR = Kind("a transformers zero-shot detector", "config.json", "model_type", ("owlvit", "owlv2", "grounding-dino"))
SEGMENTER = Kind("a segment_anything", "config.json", "model_type", ("segment_anything",))
CLIP = Kind("an open_clip", "open_clip_config.json")
DINO = Kind("a transformers ViT", "config.json", "model_type", ("dinov2", "dinov2_with_registers", "vit"))
DEPTH = Kind("a transformers relative-depth", "config.json", "model_type", ("depth_anything", "dpt"))
CHAT = Kind("a transformers chat model", "config.json")
KINDS = (BASE_MODEL, DETECTOR, SEGMENTER, CLIP, DINO, DEPTH)


def library(name: str) -> Any:
    """A heavy library, imported when a model is loaded and not before."""
    return importlib.import_module(name)


def is_folder(name_or_path: str) -> bool:
    """Whether the name is a folder on this machine."""
    return Path(name_or_path).is_dir()


def manifest(name_or_path: str, kind: Kind, revision: str | None = None) -> dict[str, Any]:
    """The announcing file of a local folder or a hub repository, once it is known to be of this kind.

    Raises FileNotFoundError or ValueError with what was wanted, what was found and what to do.
    """
    if is_folder(name_or_path):
        folder = Path(name_or_path)
        path = folder / kind.file
        if not path.is_file():
            raise FileNotFoundError(f"want {kind}, got {describe(folder)}")
        if not any(folder.rglob("*.safetensors")):
            raise FileNotFoundError(
                f"want {kind} and *.safetensors weights, got {describe(folder)} without them; "
                "save it again with safe_serialization"
            )
    elif HUB_ID.fullmatch(name_or_path):
        path = _from_hub(name_or_path, kind, revision)
    else:
        raise FileNotFoundError(
            f"want {kind} or a hub id 'owner/name', got {name_or_path!r}, which is neither; "
            "check the path, or train the toy models first"
        )
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kind.key is not None and found.get(kind.key) not in kind.accepts:
        raise ValueError(f"want {kind}, got {name_or_path!r} with {kind.key} {found.get(kind.key)!r}")
    return found


def describe(folder: Path) -> str:
    """One phrase on what a folder holds: the kinds it would serve as, else its first file names."""
    names = sorted(path.name for path in folder.iterdir())
    fits = [str(kind) for kind in KINDS if _fits(folder, kind)]
    if fits:
        return f"{str(folder)!r}, {' or '.join(fits)}"
    if not names:
        return f"{str(folder)!r}, an empty folder"
    return f"{str(folder)!r} holding {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"


def _fits(folder: Path, kind: Kind) -> bool:
    path = folder / kind.file
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return kind.key is None or found.get(kind.key) in kind.accepts


def _from_hub(hub_id: str, kind: Kind, revision: str | None) -> Path:
    try:
        return Path(library("huggingface_hub").hf_hub_download(hub_id, kind.file, revision=revision))
    except Exception as error:  # the hub raises a dozen classes for: offline, no such repository, no such file
        raise FileNotFoundError(
            f"want {kind} or its hub id, got {hub_id!r}: no such folder here, and the hub did not give "
            f"{kind.file} ({type(error).__name__}); check the name, the network and the login"
        ) from error
