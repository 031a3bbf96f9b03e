"""Batches of encoded pairs. Latents and texts are memory-mapped; 38 bytes per pair and 8 per text are in memory.

Shapes: M pairs, B samples, C latent channels, h and w latent sizes, L tokens of width D. `latent_files` writes and
describes the files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emuedit.models.text_to_image import TextCondition
from emuedit.name_hints import closest_match
from emuedit.tasks import ALL_TASKS
from emuedit.training.batches import latent_files
from emuedit.training.batches.aspect_buckets import Size
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.pair_order import PairOrder
from emuedit.training.batches.text_files import text_file

MAX_PARTS = 2**16
"""Upper bound of the parts of a shard: file number = shard number * this + part number."""
OPEN_FILES = 1024
"""Maximum number of mapped files. A cache may have more than the system's limit (65530 on Linux)."""


class LatentCacheError(ValueError):
    """Raised for pairs that cannot be used for training."""


def check_tasks(names: Iterable[str]) -> None:
    """Raise LatentCacheError for kept pairs of a task that is not trained."""
    if unknown := sorted(set(names) - set(ALL_TASKS)):
        raise LatentCacheError(f"want kept pairs of the tasks {', '.join(ALL_TASKS)}; got pairs of {', '.join(unknown)}")


def check_task_weights(task_weights: Mapping[str, float]) -> None:
    """Raise LatentCacheError for a weight of an unknown task."""
    for name in task_weights:
        if name not in ALL_TASKS:
            raise LatentCacheError(
                f"want task_weights for tasks from {', '.join(ALL_TASKS)}; got {name!r}{closest_match(name, ALL_TASKS)}"
            )


def no_training_pairs(n_kept: int) -> LatentCacheError:
    """The error for `n_kept` kept pairs of which none is for training."""
    return LatentCacheError(
        f"want kept pairs to train on, got {n_kept}, all of them held out; loosen the filters or generate more pairs"
    )


@dataclass(frozen=True)
class PairRows:
    """Metadata of M pairs, one array per column."""

    shard: NDArray[np.int32]
    row: NDArray[np.int32]  # row in the shard
    part: NDArray[np.int32]  # part of the shard's latents
    position: NDArray[np.int32]  # row in the part's latents of its size
    mirrored_position: NDArray[np.int32]  # of the mirrored image; -1: not mirrored
    bucket: NDArray[np.int16]  # row of `LatentCache.sizes`
    task: NDArray[np.int16]  # row of `LatentCache.task_names`
    text: NDArray[np.int32]  # row of the encoded texts
    is_replay: NDArray[np.bool_]  # pair of an earlier training
    id: NDArray[np.uint64]  # the 16 hex digits as a number

    def __len__(self) -> int:
        return len(self.shard)

    def where(self, selected: NDArray[np.bool_]) -> PairRows:
        """The selected rows."""
        return PairRows(*(getattr(self, name)[selected] for name in self.__dataclass_fields__))

    def ids(self, positions: NDArray[np.int64]) -> tuple[str, ...]:
        """Ids of the pairs at these positions."""
        return tuple(f"{value:016x}" for value in self.id[positions].tolist())

    @property
    def pair_ids(self) -> NDArray[np.str_]:
        """Ids of all pairs, 64 bytes per pair, computed at each call. For a batch, use `ids`."""
        return np.array(self.ids(np.arange(len(self))), np.str_)


class LatentCache:
    """Encoded pairs: the rows `train` and `held_out`, their order, and batches of them.

    `task_names` are the rows of the task embedding; `tasks`: tasks with training pairs, in the order of TASKS;
    `sizes` are the buckets, (height, width) in px.
    """

    def __init__(self, folder: Path, held_out_share: float) -> None:
        """For a task embedding with the rows TASKS; see `with_tasks` for others.

        Raises LatentCacheError if there is no training pair.
        """
        self._folder, self._index = folder, latent_files.read_index(folder)
        self._open = lru_cache(OPEN_FILES)(partial(_map_file, folder, self._index))  # no bound method: a reference cycle
        text_hashes = [np.load(text_file(folder, key, "texts")) for key in self._index.texts]
        self._has_pooled_text = text_file(folder, self._index.null_text, "pooled").exists()
        self._text_starts = np.cumsum([0, *map(len, text_hashes)])
        rows, group_seeds, self.sizes = self._read_rows(np.concatenate([np.zeros(0, np.uint64), *text_hashes]))
        is_held_out = group_seeds < latent_files.held_out_bound(held_out_share, len(rows))
        self.train, self.held_out = rows.where(~is_held_out), rows.where(is_held_out)
        if not len(self.train):
            raise no_training_pairs(len(rows))
        self.tasks = tuple(name for i, name in enumerate(ALL_TASKS) if (self.train.task == i).any())
        self.task_names = ALL_TASKS

    def with_tasks(self, names: Sequence[str]) -> LatentCache:
        """The same cache for a task embedding with these rows, without held-out pairs of other tasks.

        Raises LatentCacheError if one of `tasks` has no row.
        """
        if without_row := set(self.tasks) - set(names):
            raise LatentCacheError(f"want a row for every task with training pairs, got none for {sorted(without_row)}")
        row_of = np.array([names.index(name) if name in names else -1 for name in self.task_names], np.int16)
        cache, with_row = copy.copy(self), row_of[self.held_out.task] >= 0
        cache.train = replace(self.train, task=row_of[self.train.task])
        cache.held_out = replace(self.held_out, task=row_of[self.held_out.task]).where(with_row)
        cache.task_names = tuple(names)
        return cache

    def order(
        self,
        batch_size: int,
        task_balance: float,
        seed: int,
        task_weights: Mapping[str, float] | None = None,
        replay_share: float = 0.0,
    ) -> PairOrder:
        """The training order of the pairs in `train`. Tasks without `task_weights` have weight 1.

        `replay_share`: share of samples that are replayed pairs, if there are any.
        Raises LatentCacheError for a weight of an unknown task, PairOrderError for weights that exclude all pairs.
        """
        check_task_weights(task_weights or {})
        weights = [(task_weights or {}).get(name, 1.0) for name in self.task_names]
        rows = self.train
        if not rows.is_replay.any():
            return PairOrder(rows.task, rows.bucket, batch_size, task_balance, weights, seed)
        # Replayed pairs are separate tasks in the order; their weights give the share.
        groups = rows.task + len(weights) * rows.is_replay
        counts = np.bincount(groups, minlength=2 * len(weights)).reshape(2, -1).astype(np.float64)
        drawn = np.where(counts > 0, counts**task_balance * weights, 0.0).sum(1)  # new pairs, replayed pairs
        factors = np.array([1 - replay_share, replay_share]) / np.where(drawn > 0, drawn, 1.0)
        return PairOrder(groups, rows.bucket, batch_size, task_balance, np.outer(factors, weights).ravel().tolist(), seed)

    def by_bucket(self, rows: PairRows, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Positions of `rows`, split by image size for `batch`."""
        buckets = rows.bucket[positions]
        return [positions[buckets == bucket] for bucket in np.unique(buckets)]

    def batch(self, rows: PairRows, positions: NDArray[np.int64], flip: NDArray[np.bool_]) -> Batch:
        """The pairs at these positions of `rows`, mirrored if `flip` is set and mirroring is allowed; float32 latents on the CPU.

        Raises LatentCacheError for pairs of several sizes.
        """
        sizes = [self.sizes[bucket] for bucket in np.unique(rows.bucket[positions])]
        if len(sizes) != 1:
            raise LatentCacheError(f"want pairs of one size in a batch, got (height, width) {sizes}; split them with by_bucket")
        mirrored = flip & (rows.mirrored_position[positions] >= 0)
        texts, files = rows.text[positions], _file_numbers(rows.shard[positions])
        pair_rows = self._gather("pairs", files, rows.row[positions])
        places = np.where(mirrored, rows.mirrored_position[positions], rows.position[positions])
        latent_parts = _file_numbers(rows.shard[positions], rows.part[positions])
        pairs = self._gather("latents", latent_parts, places, size=sizes[0])  # [B, 2, C, h, w]
        source, target = (torch.from_numpy(np.ascontiguousarray(pairs[:, i], np.float32)) for i in (0, 1))  # [B, C, h, w]
        return Batch(
            source=source,
            target=target,
            text=self._text(texts),
            null=self._text(None),
            tasks=torch.from_numpy(rows.task[positions].astype(np.int64)),
            ids=rows.ids(positions),
            instructions=tuple(instruction.decode() for instruction in pair_rows["instruction"].tolist()),
            sizes=torch.from_numpy(_size_conditions(pair_rows, mirrored)),
        )

    def _gather(self, kind: str, file_of: NDArray[np.int64], row: NDArray[Any], size: Size | None = None) -> NDArray[Any]:
        """Gather `row[n]` of file `file_of[n]` for each sample n, with one access per file."""
        by_file = np.argsort(file_of, kind="stable")
        numbers, starts = np.unique(file_of[by_file], return_index=True)
        files = [self._open(kind, number, size) for number in numbers.tolist()]
        dtype = np.result_type(*{file.dtype for file in files})  # text columns have the width of their file's longest text
        out = np.empty((len(file_of), *files[0].shape[1:]), dtype)
        for file, samples in zip(files, np.split(by_file, starts[1:]), strict=True):
            out[samples] = file[row[samples]]
        return out

    def _text(self, texts: NDArray[np.int32] | None) -> TextCondition:
        """Encoded texts by row, or the null text; float16, as stored."""
        files, rows = np.full(1, -1, np.int64), np.zeros(1, np.int64)
        if texts is not None:
            files = np.searchsorted(self._text_starts, texts, side="right") - 1
            rows = texts - self._text_starts[files]
        parts = ("hidden", "pooled") if self._has_pooled_text else ("hidden",)
        return TextCondition(*(torch.from_numpy(self._gather(part, files, rows)) for part in parts))

    def _read_rows(self, text_hashes: NDArray[np.uint64]) -> tuple[PairRows, NDArray[np.uint64], tuple[Size, ...]]:
        """(rows of all pairs, the seed of each pair's caption, all sizes); tasks are numbered as TASKS."""
        columns = _read_columns([latent_files.pairs_file(self._folder, key) for key in self._index.shards])
        sizes, bucket = np.unique(columns["size"], axis=0, return_inverse=True)
        names, name = np.unique(columns["task"], return_inverse=True)
        tasks = [bytes(task).decode() for task in names]
        check_tasks(tasks)
        by_hash = np.argsort(text_hashes)
        rows = PairRows(
            shard=columns["shard"],
            row=columns["row"],
            part=columns["part"],
            position=columns["position"],
            mirrored_position=columns["mirrored_position"],
            bucket=bucket.reshape(-1).astype(np.int16),
            task=np.array([ALL_TASKS.index(task) for task in tasks], np.int16)[name],
            text=by_hash[np.searchsorted(text_hashes, columns["text"], sorter=by_hash)].astype(np.int32),
            is_replay=np.isin(np.array(self._index.shards), self._index.replay)[columns["shard"]],
            id=columns["id"],
        )
        return rows, columns["group_seed"], tuple((height, width) for height, width in sizes.tolist())


def _read_columns(files: Sequence[Path]) -> dict[str, NDArray[Any]]:
    """Columns of all pairs, and the `shard` and the `row` in it of each; instructions and crops stay on disk."""
    names = ("id", "group_seed", "part", "position", "mirrored_position", "size", "text", "task")
    empty = np.zeros(0, [*latent_files.PAIR, ("task", "S1")])
    parts = {name: [empty[name]] for name in names} | {name: [np.zeros(0, np.int32)] for name in ("shard", "row")}
    for number, file in enumerate(files):
        shard = np.load(file)
        for name in names:
            parts[name].append(shard[name].copy())  # a view would keep all columns in memory
        parts["shard"].append(np.full(len(shard), number, np.int32))
        parts["row"].append(np.arange(len(shard), dtype=np.int32))
    return {name: np.concatenate(column) for name, column in parts.items()}


def _file_numbers(shard: NDArray[np.int32], part: NDArray[np.int32] | int = 0) -> NDArray[np.int64]:
    """File number of a part of a shard."""
    return shard.astype(np.int64) * MAX_PARTS + part


def _size_conditions(pair_rows: NDArray[Any], mirrored: NDArray[np.bool_]) -> NDArray[np.float32]:
    """SDXL's size conditions of the pairs, [B, 6]: original size, crop, target size (arXiv 2307.01952, section 2.2)."""
    left = np.where(mirrored, pair_rows["mirrored_left"], pair_rows["crop"][:, 1])
    return np.column_stack([pair_rows["original"], pair_rows["crop"][:, 0], left, pair_rows["size"]]).astype(np.float32)


def _map_file(folder: Path, index: latent_files.CacheIndex, kind: str, number: int, size: Size | None) -> NDArray[Any]:
    """Memory-map the pairs or latents of a file number, or encoded texts ("hidden" or "pooled"; -1: the null text).

    Returned as a plain array: numpy's class for mapped arrays makes each access several times slower.
    """
    shard, part = divmod(number, MAX_PARTS)
    if kind == "pairs":
        path = latent_files.pairs_file(folder, index.shards[shard])
    elif kind == "latents" and size is not None:
        path = latent_files.latents_file(folder, index.shards[shard], part, size)
    else:
        path = text_file(folder, index.null_text if number < 0 else index.texts[number], kind)
    mapped: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r"))
    return mapped
