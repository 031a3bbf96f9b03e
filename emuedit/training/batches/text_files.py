"""The encoded instructions of a latent cache: each distinct instruction is encoded once per set of text encoders.

Shapes: T texts, L tokens of width D. All names start with the key of the text encoders, so that other text encoders (e.g. trained
ones of a champion) do not invalidate the latents of the cache.

    <encoders>-<key>.hidden.npy   float16 [T, L, D], T instructions that are in no other file
    <encoders>-<key>.pooled.npy   float16 [T, P], for SDXL
    <encoders>-<key>.texts.npy    sorted hashes of the instructions, uint64 [T], written after them
    <encoders>-null.hidden.npy, ...   the null text, likewise
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.models.text_to_image import TextToImageModel
from emuedit.training.batches.pair_encoding import EncodedTexts, encode_texts, to_float16


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array atomically."""
    with replacing(path) as partial:
        np.save(partial, array)


def delete_files(files: Iterable[Path]) -> None:
    """Delete files of a cache; those that mark others as complete go first, so that a kill leaves no false marks."""
    markers = (".json", ".pairs.npy", ".encoded.npy", ".texts.npy")
    for file in sorted(files, key=lambda file: not file.name.endswith(markers)):
        file.unlink()


def text_file(folder: Path, key: str, part: str) -> Path:
    """The part `hidden`, `pooled` or `texts` (hashes) of encoded texts."""
    return folder / f"{key}.{part}.npy"


def null_key(text_key: str) -> str:
    """Key of the null text's files."""
    return f"{text_key}-null"


class TextFiles:
    """The files with encoded instructions in one folder."""

    def __init__(self, folder: Path, encoders: TextToImageModel, text_key: str) -> None:
        """`text_key`: key of the text encoders and tokenizers."""
        self.folder, self.encoders, self.text_key = folder, encoders, text_key
        self.truncated: list[str] = []
        """New instructions that exceed the token limit of a text encoder."""
        files = sorted(folder.glob(f"{text_key}-*.texts.npy"))
        self.file_of = {value: file.name.split(".")[0] for file in files for value in np.load(file).tolist()}
        if not text_file(folder, null_key(text_key), "texts").exists():
            self._save(null_key(text_key), to_float16(encoders.null_text(1)), np.zeros(0, np.uint64))

    def add(self, rows: NDArray[Any]) -> None:
        """Encode the instructions of a shard that are in no file. `rows`: columns `text` (hashes) and `instruction`."""
        hashes, first = np.unique(rows["text"], return_index=True)
        is_new = np.array([value not in self.file_of for value in hashes.tolist()], np.bool_)
        if is_new.any():
            instructions = [bytes(instruction).decode() for instruction in rows["instruction"][first[is_new]]]
            key = f"{self.text_key}-{content_key({'texts': instructions})}"
            self._save(key, encode_texts(instructions, self.encoders), hashes[is_new])
            self.truncated += [instruction for instruction in instructions if self.encoders.is_truncated(instruction)]

    def keys_of(self, hashes: NDArray[np.uint64]) -> tuple[str, ...]:
        """Keys of the files with these texts, sorted."""
        return tuple(sorted({self.file_of[value] for value in hashes.tolist()}))

    def _save(self, key: str, parts: EncodedTexts, hashes: NDArray[np.uint64]) -> None:
        for part, array in parts.items():
            save_array(text_file(self.folder, key, part), array)
        save_array(text_file(self.folder, key, "texts"), hashes)
        self.file_of.update(dict.fromkeys(hashes.tolist(), key))
