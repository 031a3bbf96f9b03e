"""The files of a latent cache: each image and each distinct instruction is encoded once, until it changes.

Shapes: N pairs of a shard, k latents of one size, C latent channels, h and w latent sizes. The key of a shard is a hash of its
content and of the bucket sizes. A change of the kept pairs or their tasks changes only the rows: newly kept pairs are encoded
into a new part. Unused files are deleted. `text_files` describes the files of the instructions, which are in the same folder.

    <shard>.<part>.<height>x<width>.npy   float16 [k, 2, C, h, w]: source and target; mirrored pairs follow the plain ones
    <shard>.<part>.encoded.npy            rows of `ENCODED`, one per pair of the part, written after the latents
    <shard>-<rows>.pairs.npy              N rows of `PAIR`: the kept pairs in the order of the shard
    index.json                            the keys in use, written last
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key, find_file
from emuedit.data.records import Pair
from emuedit.data.shards import read_shard
from emuedit.data.text_hash import text_hash
from emuedit.models.text_to_image import TextToImageModel
from emuedit.progress import Progress
from emuedit.runtime import seed_for
from emuedit.training.batches.aspect_buckets import AspectBuckets, Size
from emuedit.training.batches.kept_pairs import PairShard, PairTasks, TrainingPairs, image_group
from emuedit.training.batches.mirroring import has_no_side, may_flip
from emuedit.training.batches.pair_encoding import EncodesImages, encode_images, place_pairs
from emuedit.training.batches.text_files import TextFiles, delete_files, null_key, save_array

INDEX_FILE = "index.json"
MAX_HELD_OUT_PAIRS = 2000
"""Pairs that are held out at most, on average: enough for the held-out loss of a task with 0.4 % of the pairs. Ours."""
CODE = (
    *(f"emuedit/training/batches/{name}.py" for name in (
        "latent_files", "text_files", "mirroring", "pair_encoding", "aspect_buckets", "kept_pairs")),
    "emuedit/models", "emuedit/data", "emuedit/core", "emuedit/config.py", "emuedit/runtime.py", "emuedit/number_format.py",
    "emuedit/tasks.py", "emuedit/processes.py",
)  # fmt: skip
"""Code that determines the content of these files; a test compares it with this module's imports."""
ENCODED = [
    ("id", "u8"),  # the 16 hex digits as a number
    ("group_seed", "u8"),  # decides whether the pair is held out
    ("position", "i4"),  # in the file of its size
    ("mirrored_position", "i4"),  # of the mirrored image; -1: not encoded
    ("size", "i4", 2),  # all sizes and positions are (height, width) in px
    ("original", "i4", 2),
    ("crop", "i4", 2),  # top and left in the resized image
    ("mirrored_left", "i4"),
    ("enlarged", "?"),
    ("text", "u8"),  # hash of the instruction
]
"""Columns of `<shard>.<part>.encoded.npy`, followed by the text `instruction` in UTF-8."""
PAIR = [*ENCODED, ("part", "i4")]
"""Columns of `<shard>-<rows>.pairs.npy`, followed by the texts `task` and `instruction`. `mirrored_position` is also -1 if the
pair's task is not mirrored."""


@dataclass(frozen=True)
class EncodingKeys:
    """Keys of a cache, 16 hex digits each: hashes of weights, number format and code."""

    latents: str
    """Name of the cache folder: key of the VAE."""
    texts: str
    """Prefix of the text files: key of tokenizers and text encoders."""

    @classmethod
    def of(cls, model: str, dtype: str, root: Path) -> EncodingKeys:
        """Keys of a base model or an editor: hash of the parts' content for a folder, of the name for a hub id."""
        code, folder = [find_file(name, root) for name in CODE], Path(model)
        settings = {"dtype": dtype} if folder.exists() else {"dtype": dtype, "base_model": model}
        files = sorted(folder.iterdir()) if folder.exists() else []
        vae, texts = (
            [part for part in files if part.name.startswith(names)] for names in (("vae",), ("tokenizer", "text_encoder"))
        )
        return cls(content_key(settings, *code, *vae), content_key(settings | {"of": "texts"}, *code, *texts))


@dataclass(frozen=True)
class CacheIndex:
    """The keys in use."""

    shards: tuple[str, ...]  # `<shard>-<rows>` of all shards of pairs, in order
    replay: tuple[str, ...]  # those with replayed pairs
    texts: tuple[str, ...]  # keys of the text files
    null_text: str  # key of the null text


def latents_file(folder: Path, key: str, part: int, size: Size) -> Path:
    """The latents of a part of a shard's pairs that have one size, (height, width) in px."""
    return folder / f"{key.split('-')[0]}.{part}.{size[0]}x{size[1]}.npy"


def encoded_file(folder: Path, content: str, part: int) -> Path:
    """The rows of a part of a shard."""
    return folder / f"{content}.{part}.encoded.npy"


def encoded_parts(folder: Path) -> dict[str, list[int]]:
    """Key of a shard's latents -> numbers of its parts; lists the folder once for all shards."""
    parts: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.encoded.npy")):
        content, part, *_ = file.name.split(".")
        parts.setdefault(content, []).append(int(part))
    return parts


def pairs_file(folder: Path, key: str) -> Path:
    """The rows of a shard's pairs."""
    return folder / f"{key}.pairs.npy"


def read_index(folder: Path) -> CacheIndex:
    """The keys in use. Raises FileNotFoundError for an incomplete cache."""
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    return CacheIndex(tuple(index["shards"]), tuple(index["replay"]), tuple(index["texts"]), index["null_text"])


def group_seed(group: str) -> int:
    """A number in [0, 2**63) that depends only on an `image_group`; groups in the lowest share of the range are held out."""
    return seed_for("editor", "held out", group)


def held_out_bound(share: float, n_pairs: int) -> int:
    """Groups with a `group_seed` below this number are held out: this share of n_pairs, or about MAX_HELD_OUT_PAIRS if fewer."""
    return math.ceil(min(share, MAX_HELD_OUT_PAIRS / max(1, n_pairs)) * 2**63)


@dataclass(frozen=True)
class EncodingJob:
    """A shard of pairs to encode, and its files; it can be pickled, to do it in another process."""

    shard: PairShard
    folder: Path
    rows: PairTasks
    """Its pairs that are kept, in the order of the shard."""
    content: str
    """Key of its latents."""
    key: str
    """Key of its rows."""
    parts: Sequence[int]
    """Numbers of its existing parts."""
    buckets: AspectBuckets
    mirrored: bool

    def missing(self) -> set[str]:
        """Ids of the kept pairs that are in no part."""
        return self.rows.tasks().keys() - _ids_of(self._read_parts())

    def run(self, encoder: EncodesImages) -> None:
        """Encode the missing pairs, then write the rows of all kept pairs."""
        parts = self._read_parts()
        if missing := self.rows.tasks().keys() - _ids_of(parts):
            number = max(parts, default=-1) + 1
            pairs = [pair for pair in read_shard(self.shard.path, Pair) if pair.id in missing]
            parts[number] = self._encode(pairs, number, encoder)
        save_array(pairs_file(self.folder, self.key), _rows(parts, self.rows.tasks()))

    def _read_parts(self) -> dict[int, NDArray[Any]]:
        """Number -> rows of each existing part."""
        return {part: np.load(encoded_file(self.folder, self.content, part)) for part in self.parts}

    def _encode(self, pairs: Sequence[Pair], part: int, encoder: EncodesImages) -> NDArray[Any]:
        """Write the latents of a new part, one file per size, then its rows."""
        placements = place_pairs(pairs, self.buckets, encoder.factor)
        instructions = [pair.instruction.encode() for pair in pairs]
        rows = np.zeros(len(pairs), [*ENCODED, ("instruction", _text_type(instructions))])
        for row, pair, placement, instruction in zip(rows, pairs, placements, instructions, strict=True):
            row["id"], row["group_seed"] = int(pair.id, 16), group_seed(image_group(pair.parent_ids, pair.recipe))
            row["size"], row["original"], row["enlarged"] = placement.size, placement.original, placement.is_enlarged
            row["crop"], row["mirrored_left"] = (placement.top, placement.left), placement.mirrored_left
            row["text"], row["instruction"], row["mirrored_position"] = text_hash(instruction), instruction, -1
        flips = np.array([self.mirrored and has_no_side(pair.instruction) for pair in pairs], np.bool_)  # tasks may change later
        for size in sorted({placement.size for placement in placements}):
            selected = np.array([placement.size == size for placement in placements])
            numbers = np.flatnonzero(selected).tolist()
            latents = encode_images([pairs[i] for i in numbers], [placements[i] for i in numbers], flips[selected], encoder)
            save_array(latents_file(self.folder, self.content, part, size), latents)
            rows["position"][selected] = np.arange(len(numbers))
            rows["mirrored_position"][selected & flips] = np.arange(len(numbers), len(latents))
        save_array(encoded_file(self.folder, self.content, part), rows)
        return rows


EncodeShards = Callable[[Sequence[EncodingJob]], Generator[str, None, None]]
"""Runs jobs in any order; yields the key of each when its files are written."""


def encode_here(encoder: EncodesImages, jobs: Sequence[EncodingJob]) -> Generator[str, None, None]:
    """The `EncodeShards` of this process, in order."""
    for job in jobs:
        job.run(encoder)
        yield job.key


def build(
    pairs: TrainingPairs,
    encoders: TextToImageModel,
    folder: Path,
    buckets: AspectBuckets | None = None,
    *,
    mirrored: bool = True,
    text_key: str = "texts",
    encode: EncodeShards | None = None,
) -> None:
    """Encode the kept pairs, shard by shard; existing files in `folder` are reused.

    `buckets`: the sizes to which images are resized; None: images keep their sizes, each a bucket. `mirrored`: also encode the
    mirrored images of pairs that may be mirrored. `text_key`: `EncodingKeys.texts`. `encode`: encodes the images of shards whose
    rows are missing; None: `encode_here`. Raises PairEncodingError for images that cannot be used for training.
    """
    buckets = AspectBuckets.unchanged() if buckets is None else buckets
    folder.mkdir(parents=True, exist_ok=True)
    parts_of, shards = encoded_parts(folder), list[EncodingJob]()
    for shard in pairs.shards:
        content = shard.latents_key(buckets.sizes, mirrored)
        kept = content_key({"kept": pairs.tasks_of(shard)})  # the tasks of one shard are in memory at a time
        parts = parts_of.get(content, ())
        shards.append(EncodingJob(shard, folder, pairs.rows_of(shard), content, f"{content}-{kept}", parts, buckets, mirrored))
    texts, text_hashes, n_enlarged, n_pairs = TextFiles(folder, encoders, text_key), [np.zeros(0, np.uint64)], 0, 0
    parts_in_use: set[str] = set()
    n_shards = Counter(work.key for work in shards)  # of equal content
    jobs = {work.key: work for work in shards if not pairs_file(folder, work.key).exists()}
    n_done = sum(n for key, n in n_shards.items() if key not in jobs)
    encoded = (encode or partial(encode_here, encoders))([*jobs.values()])
    with closing(encoded), Progress("train: encode pairs", len(shards), "shard", n_done) as progress:
        for work in shards:
            while work.key in jobs:
                key = next(encoded)
                del jobs[key]
                progress.advance(n_shards[key])
            rows = np.load(pairs_file(folder, work.key))
            texts.add(rows)
            text_hashes.append(np.unique(rows["text"]))
            parts_in_use |= {f"{work.content}.{part}" for part in np.unique(rows["part"])}
            n_enlarged, n_pairs = n_enlarged + int(rows["enlarged"].sum()), n_pairs + len(rows)
    keys = tuple(work.key for work in shards)
    text_keys = texts.keys_of(np.unique(np.concatenate(text_hashes)))
    index = CacheIndex(keys, keys[len(pairs.new) :], text_keys, null_key(text_key))
    with replacing(folder / INDEX_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(index)), encoding="utf-8")
    _prune(folder, index, parts_in_use)
    if n_enlarged:
        print(f"train: {n_enlarged} of {n_pairs} pairs are smaller than their bucket and were enlarged", flush=True)
    if texts.truncated:
        length, longest = encoders.tokenizer.model_max_length, max(texts.truncated, key=len)
        print(
            f"train: {len(texts.truncated)} new instructions exceed the text encoder's {length} tokens, such as "
            f"{longest!r}; they are truncated",
            flush=True,
        )


def _rows(parts: dict[int, NDArray[Any]], tasks_of_pairs: dict[str, str]) -> NDArray[Any]:
    """Rows of `PAIR` of the kept pairs, in the order of the shard."""
    place_of = {f"{pair_id:016x}": (part, i) for part, rows in parts.items() for i, pair_id in enumerate(rows["id"].tolist())}
    places = [place_of[pair_id] for pair_id in tasks_of_pairs]
    tasks = [task.encode() for task in tasks_of_pairs.values()]
    instructions = [bytes(parts[part]["instruction"][i]) for part, i in places]
    texts = [("task", _text_type(tasks)), ("instruction", _text_type(instructions))]
    out = np.zeros(len(tasks), [*PAIR, *texts])
    for row, (part, i), task, instruction in zip(out, places, tasks, instructions, strict=True):
        for name, *_ in ENCODED:
            row[name] = parts[part][name][i]
        row["part"], row["task"], row["instruction"] = part, task, instruction
        if not may_flip(task.decode(), instruction.decode()):
            row["mirrored_position"] = -1
    return out


def _ids_of(parts: dict[int, NDArray[Any]]) -> set[str]:
    """Ids of the pairs of these parts."""
    return {f"{pair_id:016x}" for rows in parts.values() for pair_id in rows["id"].tolist()}


def _text_type(texts: Sequence[bytes]) -> str:
    """numpy's type for the longest of these texts."""
    return f"S{max([1, *map(len, texts)])}"


def _prune(folder: Path, index: CacheIndex, parts_in_use: set[str]) -> None:
    """Delete files of other keys."""
    in_use = {*index.shards, *index.texts, index.null_text, *parts_in_use}
    parts_of = {file: file.name.split(".") for file in folder.iterdir() if file.name != INDEX_FILE}
    delete_files(file for file, parts in parts_of.items() if not {parts[0], ".".join(parts[:2])} & in_use)
