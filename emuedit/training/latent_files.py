"""The files of a latent cache: every picture and every distinct instruction is encoded once, for as long as it does not change.

Shapes: N pairs of a shard, n of them of one size, C latent channels, h and w latent sizes, T texts, L tokens of width D.
The key of a shard is a hash of its content, of which pairs are kept for which task, and of the sizes of the buckets. The key of
texts is a hash of them. A file whose key is not in use any more is deleted.

    <key>.<height>x<width>.npy  float16 [n, 2, 2, C, h, w]: plain and mirrored; source and target
    <key>.pairs.npy             N rows of `PAIR`, written after the latents
    <text key>.hidden.npy       float16 [T, L, D], T instructions that no other file has
    <text key>.pooled.npy       float16 [T, P], for SDXL
    <text key>.texts.npy        hashes of the instructions, uint64 [T], written after them
    null.hidden.npy, ...        the null text, likewise
    index.json                  the keys in use, written last
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key, find_file
from emuedit.data.records import Pair
from emuedit.data.shards import read_shard
from emuedit.models.text_to_image import TextToImageModel
from emuedit.progress import Progress
from emuedit.runtime import seed_for
from emuedit.tasks import get_task
from emuedit.training.aspect_buckets import AspectBuckets, Size
from emuedit.training.kept_pairs import REPLAY_PAIRS, REPLAY_VERDICTS, KeptPairs, pair_shards
from emuedit.training.pair_encoding import EncodedTexts, encode_pictures, encode_texts, place_pairs, to_float16

INDEX_FILE, NULL_TEXT = "index.json", "null"
CODE = (
    "emuedit/training/latent_files.py", "emuedit/training/pair_encoding.py", "emuedit/training/aspect_buckets.py",
    "emuedit/training/kept_pairs.py", "emuedit/models", "emuedit/data", "emuedit/core", "emuedit/config.py", "emuedit/runtime.py",
    "emuedit/number_format.py", "emuedit/tasks.py",
)  # fmt: skip
"""The code that decides what is in these files; a test compares it with what this module imports."""
PAIR = [
    ("id", "u8"),  # the 16 hex digits as a number
    ("caption_seed", "u8"),  # decides whether the pair is held out
    ("may_flip", "?"),
    ("position", "i4"),  # in the file of its size
    ("size", "i4", 2),  # all sizes and places are (height, width) in px
    ("original", "i4", 2),
    ("crop", "i4", 2),  # top and left in the resized picture
    ("mirrored_left", "i4"),
    ("enlarged", "?"),
    ("text", "u8"),  # hash of the instruction
]
"""Columns of `<key>.pairs.npy`, followed by the texts `task` and `instruction` in UTF-8."""
ENCODERS = ("vae", "tokenizer", "text_encoder")
"""Folders of a pipeline that decide how pictures and texts are encoded; SDXL has two of the latter."""
SIDED = re.compile(
    r"\b(left|right|(counter|anti)?-?clockwise|east|west|letter|word|text(?!ur)|writ|wrot|typ(e|ing)|say|said|read|sign|spell|number|"
    r"digit|caption|label|logo|initial|title|name)|[0-9\"“”„«»]|(?<!\w)['‘’]|['’](?!\w)",
    re.IGNORECASE,
)
"""An instruction with a word that begins so, with a digit or with something in quotes may mean another thing in a mirrored
picture, or its picture may have letters in it. In doubt a pair is not mirrored."""


@dataclass(frozen=True)
class CacheIndex:
    """The keys in use."""

    shards: tuple[str, ...]  # of all shards of pairs, in order
    replay: tuple[str, ...]  # those of them with earlier pairs
    texts: tuple[str, ...]  # of the files with texts


def latents_file(folder: Path, key: str, size: Size) -> Path:
    """The latents of a shard's pairs of one size, (height, width) in px."""
    return folder / f"{key}.{size[0]}x{size[1]}.npy"


def pairs_file(folder: Path, key: str) -> Path:
    """The rows of a shard's pairs."""
    return folder / f"{key}.pairs.npy"


def text_file(folder: Path, key: str, part: str) -> Path:
    """The part `hidden`, `pooled` or `texts` (hashes) of encoded texts."""
    return folder / f"{key}.{part}.npy"


def read_index(folder: Path) -> CacheIndex:
    """The keys in use. Raises FileNotFoundError for a cache that was not built to its end."""
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return CacheIndex(tuple(index["shards"]), tuple(index["replay"]), tuple(index["texts"]))


def encoding_key(base_model: str, dtype: str, root: Path) -> str:
    """Names the folder of a cache: 16 hex digits that change with what encodes, the number format and the code.

    base_model: a base model or an editor. A folder counts by the content of its VAE, tokenizers and text encoders.
    """
    code = [find_file(name, root) for name in CODE]
    folder = Path(base_model)
    if not folder.exists():
        return content_key({"base_model": base_model, "dtype": dtype}, *code)
    encoders = sorted(part for part in folder.iterdir() if part.name.startswith(ENCODERS))
    return content_key({"dtype": dtype}, *code, *encoders)


def caption_seed(caption_id: str) -> int:
    """A number in [0, 2**63) that depends on the caption alone."""
    return seed_for("editor", "held out", caption_id)


def is_held_out(caption_id: str, share: float) -> bool:
    """Whether pairs that descend from this caption are kept from training: a share of all captions, the same on every run."""
    return caption_seed(caption_id) < share * 2**63


def may_flip(task: str, instruction: str) -> bool:
    """Whether picture and instruction still agree when the pictures are mirrored."""
    return get_task(task).mirrorable and SIDED.search(instruction) is None


def build(
    pairs: Sequence[Path],
    dataset: Path,
    base_model: TextToImageModel,
    folder: Path,
    buckets: AspectBuckets | None = None,
    replay: Path | None = None,
) -> None:
    """Encode the kept pairs of folders of pairs, shard by shard; what `folder` has already is not encoded again.

    `buckets`: the sizes that pictures are brought to; None: they keep their sizes, each a bucket of its own. `replay`: a folder
    with earlier `pairs` and their `verdicts` (`training.start`); those that `pairs` have too are left out. Raises
    PairEncodingError for pictures that cannot be trained on.
    """
    buckets = AspectBuckets.unchanged() if buckets is None else buckets
    kept = KeptPairs.read(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = KeptPairs.read(replay / REPLAY_VERDICTS).tasks() if replay is not None else {}
    chosen = []
    for shard in pair_shards(pairs):
        pair_ids = shard.pair_ids()
        chosen.append((shard, kept.tasks_of(pair_ids)))
        for pair_id in earlier.keys() & set(pair_ids):
            del earlier[pair_id]
    n_new = len(chosen)
    if replay is not None:
        for shard in pair_shards([replay / REPLAY_PAIRS]):
            chosen.append((shard, {pair_id: earlier[pair_id] for pair_id in shard.pair_ids() if pair_id in earlier}))
    shards = [
        (content_key({"shard": shard.content, "kept": tasks, "buckets": buckets.sizes}), shard.path, tasks)
        for shard, tasks in chosen
    ]
    texts, text_hashes, n_enlarged, n_pairs = _TextFiles(folder, base_model), [np.zeros(0, np.uint64)], 0, 0
    done = sum(pairs_file(folder, key).exists() for key, _, _ in shards)
    with Progress("train: encode pairs", len(shards), "shard", done) as progress:
        for key, path, tasks in shards:
            is_new = not pairs_file(folder, key).exists()
            if is_new:
                kept_pairs = [pair for pair in read_shard(path, Pair) if pair.id in tasks]
                _encode_shard(kept_pairs, tasks, base_model, buckets, folder, key)
            rows = np.load(pairs_file(folder, key))
            text_hashes.append(texts.add(rows))
            n_enlarged, n_pairs = n_enlarged + int(rows["enlarged"].sum()), n_pairs + len(rows)
            progress.advance(int(is_new))
    keys = tuple(key for key, _, _ in shards)
    index = CacheIndex(keys, keys[n_new:], texts.keys_of(np.unique(np.concatenate(text_hashes))))
    with replacing(folder / INDEX_FILE) as partial:
        partial.write_text(json.dumps(asdict(index)), encoding="utf-8")
    _prune(folder, index)
    if n_enlarged:
        print(f"train: {n_enlarged} of {n_pairs} pairs are smaller than their bucket and were enlarged", flush=True)
    if texts.cut:
        length, longest = base_model.tokenizer.model_max_length, max(texts.cut, key=len)
        print(
            f"train: {len(texts.cut)} new instructions are longer than the {length} tokens that are read, such as {longest!r}; "
            "their ends have no effect",
            flush=True,
        )


def _encode_shard(
    pairs: Sequence[Pair], tasks: dict[str, str], base_model: TextToImageModel, buckets: AspectBuckets, folder: Path, key: str
) -> None:
    """Write the latents of a shard, one file for each size, then its rows."""
    placements = place_pairs(pairs, buckets, base_model.factor)
    rows = _describe(pairs, tasks)
    for size in sorted({placement.size for placement in placements}):
        selected = [i for i, placement in enumerate(placements) if placement.size == size]
        latents = encode_pictures([pairs[i] for i in selected], [placements[i] for i in selected], base_model)
        _save(latents_file(folder, key, size), latents)
        rows["position"][selected] = np.arange(len(selected))
    for row, placement in zip(rows, placements, strict=True):
        row["size"], row["original"], row["enlarged"] = placement.size, placement.original, placement.is_enlarged
        row["crop"], row["mirrored_left"] = (placement.top, placement.left), placement.mirrored_left
    _save(pairs_file(folder, key), rows)


def _describe(pairs: Sequence[Pair], tasks: dict[str, str]) -> NDArray[Any]:
    """Rows of `PAIR`, with what does not depend on the size."""
    texts = {"task": [tasks[pair.id].encode() for pair in pairs], "instruction": [pair.instruction.encode() for pair in pairs]}
    widths = [(name, f"S{max([1, *map(len, column)])}") for name, column in texts.items()]
    rows = np.zeros(len(pairs), [*PAIR, *widths])
    for row, pair, task, instruction in zip(rows, pairs, *texts.values(), strict=True):
        row["id"], row["caption_seed"] = int(pair.id, 16), caption_seed(pair.parent_ids[1])  # an instruction, then its caption
        row["may_flip"], row["text"] = may_flip(tasks[pair.id], pair.instruction), _text_hash(instruction)
        row["task"], row["instruction"] = task, instruction
    return rows


class _TextFiles:
    """The files with encoded instructions."""

    def __init__(self, folder: Path, base_model: TextToImageModel) -> None:
        self.folder, self.base_model = folder, base_model
        self.cut: list[str] = []  # new instructions that are longer than a text encoder reads
        self.hashes = {file.name.split(".")[0]: np.load(file) for file in sorted(folder.glob("*.texts.npy"))}
        self.encoded = {value for part in self.hashes.values() for value in part.tolist()}
        if NULL_TEXT not in self.hashes:
            self._save(NULL_TEXT, to_float16(base_model.null_text(1)), np.zeros(0, np.uint64))

    def add(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        """Encode those instructions of a shard that no file has; returns the hashes of all its instructions."""
        hashes, first = np.unique(rows["text"], return_index=True)
        is_new = np.array([value not in self.encoded for value in hashes.tolist()], np.bool_)
        if is_new.any():
            instructions = [bytes(instruction).decode() for instruction in rows["instruction"][first[is_new]]]
            self._save(content_key({"texts": instructions}), encode_texts(instructions, self.base_model), hashes[is_new])
            self.cut += [instruction for instruction in instructions if self.base_model.is_cut(instruction)]
        return hashes

    def keys_of(self, hashes: NDArray[np.uint64]) -> tuple[str, ...]:
        """Keys of the files that have some of these texts."""
        return tuple(sorted(key for key, part in self.hashes.items() if np.isin(part, hashes).any()))

    def _save(self, key: str, parts: EncodedTexts, hashes: NDArray[np.uint64]) -> None:
        for part, array in parts.items():
            _save(text_file(self.folder, key, part), array)
        _save(text_file(self.folder, key, "texts"), hashes)
        self.hashes[key] = hashes
        self.encoded.update(hashes.tolist())


def _text_hash(instruction: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(instruction, digest_size=8).digest(), "big")


def _prune(folder: Path, index: CacheIndex) -> None:
    """Delete the files of other keys."""
    shards, texts = set(index.shards), {NULL_TEXT, *index.texts}
    for file in folder.iterdir():
        key, *_, part, _ = file.name.split(".") if file.suffix == ".npy" else (file.name, "", "")
        if file.name != INDEX_FILE and key not in (texts if part in ("hidden", "pooled", "texts") else shards):
            file.unlink()


def _save(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as partial:
        np.save(partial, array)
