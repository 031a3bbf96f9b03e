"""Whether the files of a model folder are whole, and not what a copy, a download or a clone without Git LFS left.

Only the heads of weights are read, so a folder of many GB takes milliseconds. What is never loaded is not looked at. The
libraries would name neither the file nor what to do.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit.data import git_lfs

_HEAD_BYTES = 1024
_LENGTH_BYTES = 8  # of a safetensors file: the length of its header, little-endian
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of diffusers pipelines that are never loaded here, and may be missing."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "*.spm")
_TOKENIZERS_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes that need no vocabulary."""


class ModelFileError(ValueError):
    """Raised for a model folder of another kind, or with damaged or missing files."""


class MissingModelError(FileNotFoundError):
    """Raised where no model of the wanted kind is."""


@dataclass(frozen=True)
class BaseModelSizes:
    """Sizes of a base model by its configs alone."""

    picture_px: int
    """Side of the images that it generates."""
    grid_px: int
    """What sides must be multiples of, as `text_to_image.grid_of`."""


def base_model_sizes(folder: Path) -> BaseModelSizes | None:
    """The sizes of a base model that lies in a folder; None for one that does not, or whose configs are of another form."""
    try:
        vae, unet = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("vae", "unet"))
        factor = 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)
        return BaseModelSizes(int(unet["sample_size"] * factor), factor * 2 ** (len(unet["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check(folder: Path) -> None:
    """Raise ModelFileError, which lists what is damaged or missing, unless a model folder is whole."""
    if lines := list(problems(folder)):
        raise ModelFileError(f"want whole model files in {folder}, got {'; '.join(lines)}; copy or download the folder again")


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a model folder, such as `unet/config.json: no JSON, or a part of it`.

    Of a diffusers pipeline the index and the parts that it names are looked at, of another model the files of the folder itself.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        yield from _folder_problems(folder, "")
    elif problem := _json_problem(index):
        yield f"{index.name}: {problem}"
    else:
        for name in _parts(json.loads(index.read_text(encoding="utf-8"))):
            yield from _folder_problems(folder / name, f"{name}/")
            yield from _missing_files(folder / name, name)


def _parts(index: Any) -> Iterator[str]:
    """The parts of a pipeline that are loaded, by its index."""
    for name, kind in index.items() if isinstance(index, dict) else ():
        if isinstance(kind, list) and None not in kind and name not in UNUSED_PARTS:
            yield name


def _missing_files(part: Path, name: str) -> Iterator[str]:
    if not any(part.glob("*config.json")):
        yield f"{name}: no config"
    elif (part / "config.json").is_file() and not any(part.glob("*.safetensors")):
        yield f"{name}: no *.safetensors weights"


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
    """Whether weights are a second form of others that lie beside them: model.fp16.safetensors beside model.safetensors."""
    stem = name.removesuffix(".safetensors").split(".")[0]
    return name != f"{stem}.safetensors" and f"{stem}.safetensors" in names


def _missing_shards(file: Path) -> str:
    """Files that an index of weights in several files names and that are not there."""
    if not file.name.endswith(".safetensors.index.json"):
        return ""
    shards = set(json.loads(file.read_bytes()).get("weight_map", {}).values())
    missing = sorted(name for name in shards if not (file.parent / name).is_file())
    return f"names {', '.join(missing[:3])}, which {'is' if len(missing) == 1 else 'are'} not there" if missing else ""


def _missing_vocabulary(file: Path) -> str:
    if file.name != "tokenizer_config.json" or any(any(file.parent.glob(pattern)) for pattern in _VOCABULARIES):
        return ""
    if json.loads(file.read_bytes()).get("tokenizer_class") in _TOKENIZERS_OF_BYTES:
        return ""
    return f"no {_VOCABULARIES[0]} or another vocabulary beside it"


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
