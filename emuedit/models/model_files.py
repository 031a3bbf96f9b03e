"""Check that a model folder is complete, not a partial copy or download, or a clone without Git LFS.

Only the headers of weights are read, so a folder of many GB takes milliseconds. Files that are never loaded are skipped. The
libraries' errors would name neither the file nor a fix.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit.data import git_lfs
from emuedit.data.name_list import first_names

_HEAD_BYTES = 1024
_LENGTH_BYTES = 8  # header length of a safetensors file, little-endian
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of diffusers pipelines that are never loaded and may be missing."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "*.spm")
_TOKENIZERS_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizer classes without a vocabulary."""


class ModelFileError(ValueError):
    """Raised for a model folder of another kind, or with damaged or missing files."""


class MissingModelError(FileNotFoundError):
    """Raised if there is no model of the wanted kind."""


@dataclass(frozen=True)
class BaseModelSizes:
    """Sizes of a base model from its configs."""

    picture_px: int
    """Side of its images in px."""
    grid_px: int
    """Sides must be multiples of these px, see `text_to_image.grid_of`."""


def base_model_sizes(folder: Path) -> BaseModelSizes | None:
    """The sizes of a base model in a folder; None if there is none or its configs have another form."""
    try:
        vae, unet = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("vae", "unet"))
        factor = 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)
        return BaseModelSizes(int(unet["sample_size"] * factor), factor * 2 ** (len(unet["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check(folder: Path) -> None:
    """Raise ModelFileError, which lists damaged and missing files, unless a model folder is complete."""
    if lines := list(problems(folder)):
        raise ModelFileError(f"want complete model files in {folder}, got {'; '.join(lines)}; copy or download the folder again")


def problems(folder: Path) -> Iterator[str]:
    """Problems of the files of a model folder, such as `unet/config.json: not JSON, or truncated`.

    For a diffusers pipeline, checks the index and the parts in it; for another model, the files of the folder.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        yield from _folder_problems(folder, "")
        yield from _variants_only(folder, "")
    elif problem := _json_problem(index):
        yield f"{index.name}: {problem}"
    else:
        for name in _parts(json.loads(index.read_text(encoding="utf-8"))):
            yield from _folder_problems(folder / name, f"{name}/")
            yield from _missing_files(folder / name, name)
            yield from _variants_only(folder / name, f"{name}/")


def checkpoint_problem(file: Path) -> str:
    """What is wrong with a file of weights, .safetensors or torch's format; empty if nothing is. Reads only its ends."""
    if file.suffix == ".safetensors":
        return _weights_problem(file)
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if short := _short_problem(head):
        return short
    if head.lstrip().startswith(b"<"):
        return "a web page"
    is_archive = head.startswith(b"PK")  # torch's format since 1.6; an archive is complete if it has its directory at the end
    return f"truncated to {file.stat().st_size} bytes" if is_archive and not zipfile.is_zipfile(file) else ""


def _parts(index: Any) -> Iterator[str]:
    """The parts in a pipeline's index that are loaded."""
    for name, kind in index.items() if isinstance(index, dict) else ():
        if isinstance(kind, list) and None not in kind and name not in UNUSED_PARTS:
            yield name


def _missing_files(part: Path, name: str) -> Iterator[str]:
    if not any(part.glob("*config.json")):
        yield f"{name}: no config"
    elif (part / "config.json").is_file() and not any(part.glob("*.safetensors")):
        yield f"{name}: no *.safetensors weights"


def _variants_only(folder: Path, prefix: str) -> Iterator[str]:
    """The problem of a folder whose weights are all variants, such as model.fp16.safetensors: libraries load one by name only."""
    names = sorted(file.name for file in folder.glob("[!.]*.safetensors"))
    if names and all("." in name.removesuffix(".safetensors") for name in names):
        plain = _without_variant(names[0])
        advice = f"rename the variant (the number format is chosen when the weights are loaded), or add {plain}"
        yield f"{prefix}{names[0]}: want {plain}, got only a variant; {advice}"


def _without_variant(name: str) -> str:
    """The name without its variant: model.safetensors for model.fp16.safetensors, also of one of several shards."""
    shard = re.search(r"-\d+-of-\d+", name)
    return f"{name.split('.')[0]}{shard[0] if shard and shard[0] not in name.split('.')[0] else ''}.safetensors"


def _folder_problems(folder: Path, prefix: str) -> Iterator[str]:
    files = [file for file in sorted(folder.glob("[!.]*")) if file.suffix in (".json", ".safetensors")]
    names = {file.name for file in files}
    for file in files:
        problem = ""
        if file.suffix == ".json":
            problem = _json_problem(file) or _missing_shards(file) or _missing_vocabulary(file)
        elif not _is_variant(file.name, names):
            problem = _weights_problem(file)
        if problem:
            yield f"{prefix}{file.name}: {problem}"


def _is_variant(name: str, names: set[str]) -> bool:
    """Whether weights are a variant of others in the same folder: model.fp16.safetensors of model.safetensors."""
    stem = name.removesuffix(".safetensors").split(".")[0]
    return name != f"{stem}.safetensors" and f"{stem}.safetensors" in names


def _missing_shards(file: Path) -> str:
    """Problem text for missing files of an index of sharded weights."""
    if not file.name.endswith(".safetensors.index.json"):
        return ""
    shards = set(json.loads(file.read_bytes()).get("weight_map", {}).values())
    missing = sorted(name for name in shards if not (file.parent / name).is_file())
    return f"names {first_names(missing)}, which {'is' if len(missing) == 1 else 'are'} missing" if missing else ""


def _missing_vocabulary(file: Path) -> str:
    if file.name != "tokenizer_config.json" or any(any(file.parent.glob(pattern)) for pattern in _VOCABULARIES):
        return ""
    if json.loads(file.read_bytes()).get("tokenizer_class") in _TOKENIZERS_OF_BYTES:
        return ""
    return f"no {_VOCABULARIES[0]} or another vocabulary next to it"


def _json_problem(file: Path) -> str:
    content = file.read_bytes()
    if short := _short_problem(content):
        return short
    try:
        json.loads(content)
    except ValueError:  # invalid JSON or encoding
        return "not JSON, or truncated"
    return ""


def _weights_problem(file: Path) -> str:
    """https://huggingface.co/docs/safetensors: a length, a JSON header, and the tensors, whose end is given in the header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if short := _short_problem(head):
            return short
        n_header = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if n_header + _LENGTH_BYTES > size:
            return f"not a safetensors file, or truncated to {size} bytes"
        stream.seek(_LENGTH_BYTES)
        try:
            header: dict[str, Any] = json.loads(stream.read(n_header))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "not a safetensors file"
    expected = _LENGTH_BYTES + n_header + end
    return "" if size == expected else f"{size} bytes, want {expected}"


def _short_problem(head: bytes) -> str:
    if not head:
        return "empty"
    return git_lfs.DESCRIPTION if git_lfs.is_pointer(head) else ""
