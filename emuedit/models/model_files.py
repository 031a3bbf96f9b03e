"""Whether the files of a model folder are whole, and not what a copy, a download or a clone without Git LFS left.

Only heads are read, so a folder of many GB takes milliseconds. The libraries would name neither the file nor what to do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emuedit.data import git_lfs

_HEAD_BYTES = 1024
_LENGTH_BYTES = 8  # of a safetensors file: the length of its header, little-endian
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of diffusers pipelines that are never loaded here, and may be missing."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


class ModelFileError(ValueError):
    """Raised for a model folder of another kind, or with damaged or missing files."""


class MissingModelError(FileNotFoundError):
    """Raised where no model of the wanted kind is."""


def check(folder: Path) -> None:
    """Raise ModelFileError, which lists what is damaged or missing, unless a model folder is whole."""
    if lines := list(problems(folder)):
        raise ModelFileError(f"want whole model files in {folder}, got {'; '.join(lines)}; copy or download the folder again")


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a model folder, such as `unet/config.json: no JSON`."""
    damaged = set()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors") and path.is_file()):
        if problem := _json_problem(file) if file.suffix == ".json" else _weights_problem(file):
            damaged.add(file)
            yield f"{file.relative_to(folder)}: {problem}"
    for file in sorted(folder.rglob("tokenizer_config.json")):
        if not any((file.parent / name).is_file() for name in _VOCABULARIES):
            yield f"{file.relative_to(folder)}: no {_VOCABULARIES[0]} or another vocabulary beside it"
    index = folder / "model_index.json"
    if index.is_file() and index not in damaged:
        yield from _missing_parts(folder, json.loads(index.read_text(encoding="utf-8")))


def _json_problem(file: Path) -> str:
    content = file.read_bytes()
    if short := _short_problem(content):
        return short
    try:
        json.loads(content)
    except ValueError:  # JSON, and the encoding of text
        return "no JSON, or a part of it"
    return ""


def _weights_problem(file: Path) -> str:
    """https://huggingface.co/docs/safetensors: a length, a header in JSON, and the tensors, which end where the header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if short := _short_problem(head):
            return short
        n_header = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if n_header + _LENGTH_BYTES > size:
            return f"no safetensors file, or its first {size} bytes"
        stream.seek(_LENGTH_BYTES)
        try:
            header: dict[str, Any] = json.loads(stream.read(n_header))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "no safetensors file"
    expected = _LENGTH_BYTES + n_header + end
    return "" if size == expected else f"{size} bytes in place of {expected}"


def _short_problem(head: bytes) -> str:
    if not head:
        return "empty"
    return git_lfs.DESCRIPTION if git_lfs.is_pointer(head) else ""


def _missing_parts(folder: Path, index: Any) -> Iterator[str]:
    """Parts that the index of a diffusers pipeline names and that lack their config or weights."""
    parts = index.items() if isinstance(index, dict) else ()
    for name, kind in parts:
        is_part = isinstance(kind, list) and None not in kind and name not in UNUSED_PARTS
        if is_part and not any((folder / name).glob("*config.json")):
            yield f"{name}: no config"
        elif is_part and (folder / name / "config.json").is_file() and not any((folder / name).glob("*.safetensors")):
            yield f"{name}: no *.safetensors weights"
