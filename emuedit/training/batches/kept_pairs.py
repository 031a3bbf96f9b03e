"""The kept pairs and their tasks: verdicts of the stage `dataset`, one shard of pairs at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.data.dependencies import content_key
from emuedit.data.publish import read_summary
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import read_fields
from emuedit.progress import Progress

SHARDS = "shard-*.parquet"
REPLAY_PAIRS, REPLAY_VERDICTS = "pairs", "verdicts"
"""Sub-folders of a replay folder, in the formats of the stages `pairs` and `dataset`; all pairs are kept."""


def image_group(parent_ids: Sequence[str], recipe: Mapping[str, Any]) -> str:
    """An id that pairs with a common image share: the hash of the user's image, else the id of the caption or session.

    Pairs are held out by it. Several captions may describe one image of the user's.
    """
    return str(recipe.get("image_hash") or parent_ids[1])


@dataclass(frozen=True)
class PairShard:
    """A shard of pairs."""

    path: Path
    content: str
    """Hash of its content."""

    def latents_key(self, buckets: Sequence[tuple[int, int]], mirrored: bool) -> str:
        """Key of its latents, for these sizes of images, with or without mirrored ones."""
        return content_key({"shard": self.content, "buckets": buckets, "mirrored": mirrored})

    def pair_ids(self) -> list[str]:
        """Ids of its pairs, in order; reads only this column."""
        ids: list[str] = read_fields(self.path, Pair, "id")["id"].to_pylist()
        return ids

    def instructions(self, pairs: PairTasks) -> list[str]:
        """The instructions of these of its pairs, in order; reads only the columns id and instruction."""
        columns = read_fields(self.path, Pair, "id", "instruction")
        is_wanted = np.isin(_as_numbers(columns["id"].to_pylist()), pairs.ids)
        texts: list[str] = columns["instruction"].filter(is_wanted).to_pylist()
        return texts

    def image_groups(self) -> dict[str, str]:
        """Id of each pair, in order -> its `image_group`; reads only the columns that determine it."""
        columns = read_fields(self.path, Pair, "id", "parent_ids", "recipe").to_pydict()
        recipes = map(json.loads, columns["recipe"])
        groups = [image_group(parent_ids, recipe) for parent_ids, recipe in zip(columns["parent_ids"], recipes, strict=True)]
        return dict(zip(columns["id"], groups, strict=True))


@dataclass(frozen=True)
class PairTasks:
    """The tasks of some pairs, in 10 bytes per pair."""

    ids: NDArray[np.uint64]  # the 16 hex digits as numbers
    task: NDArray[np.int16]  # of each id, a number of `names`
    names: tuple[str, ...]

    def tasks(self) -> dict[str, str]:
        """Id -> task of all pairs, in their order; 200 bytes per pair."""
        return {f"{pair_id:016x}": self.names[task] for pair_id, task in zip(self.ids.tolist(), self.task.tolist(), strict=True)}


class KeptPairs(PairTasks):
    """The task of every kept pair, sorted by id."""

    @classmethod
    def read(cls, dataset: Path, advance: Callable[[], None] = lambda: None) -> KeptPairs:
        """Read a published folder of verdicts; calls `advance` after each shard. Raises ShardError if it is not published."""
        numbers: dict[str, int] = {}
        ids, tasks = [np.zeros(0, np.uint64)], [np.zeros(0, np.int16)]
        for shard in pair_shards([dataset]):
            columns: dict[str, list[Any]] = read_fields(shard.path, Verdict, "pair_id", "kept", "task").to_pydict()
            kept = [(i, t) for i, k, t in zip(columns["pair_id"], columns["kept"], columns["task"], strict=True) if k]
            ids.append(_as_numbers([pair_id for pair_id, _ in kept]))
            tasks.append(np.array([numbers.setdefault(task, len(numbers)) for _, task in kept], np.int16))
            advance()
        all_ids, order = np.unique(np.concatenate(ids), return_index=True)
        return cls(all_ids, np.concatenate(tasks)[order], tuple(numbers))

    def among(self, pair_ids: Sequence[str]) -> PairTasks:
        """The kept ones among these pairs, in their order."""
        id_numbers = _as_numbers(pair_ids)
        rows = np.searchsorted(self.ids, id_numbers).clip(max=max(0, len(self.ids) - 1))
        is_kept = self.ids[rows] == id_numbers if len(self.ids) else np.zeros(len(id_numbers), np.bool_)
        return PairTasks(id_numbers[is_kept], self.task[rows[is_kept]], self.names)

    def without(self, pair_ids: NDArray[np.uint64]) -> KeptPairs:
        """These pairs without some, whose ids are given as numbers."""
        stays = ~np.isin(self.ids, pair_ids)
        return KeptPairs(self.ids[stays], self.task[stays], self.names)

    def tasks_of(self, pair_ids: Sequence[str]) -> dict[str, str]:
        """Id -> task of the kept ones among these pairs, in their order."""
        return self.among(pair_ids).tasks()


def pair_shards(folders: Sequence[Path]) -> list[PairShard]:
    """The shards of published folders, folder by folder, by name. Raises ShardError for a folder that is not published."""
    return [
        PairShard(folder / name, content)
        for folder in folders
        for name, content in sorted(read_summary(folder).shards.items())
        if Path(name).match(SHARDS)
    ]


class TrainingPairs:
    """The shards of a training, and the tasks of their pairs, in 10 bytes per pair.

    `new` are the shards of the folders `pairs`, whose kept pairs are in `dataset`; `replayed` those of a replay folder, without
    the pairs that are also in `pairs`. Every shard is opened once, to read its ids.
    """

    def __init__(self, pairs: Sequence[Path], dataset: Path, replay: Path | None = None) -> None:
        """Raises ShardError for a folder that is not published."""
        self.new = pair_shards(pairs)
        self.replayed = [] if replay is None else pair_shards([replay / REPLAY_PAIRS])
        verdicts = [dataset] if replay is None else [dataset, replay / REPLAY_VERDICTS]
        self._tasks: dict[PairShard, PairTasks] = {}
        with Progress("train: read the ids of the pairs", len(pair_shards(verdicts)) + len(self.shards), "shard") as progress:
            kept, *earlier = [KeptPairs.read(folder, progress.advance) for folder in verdicts]
            for shard in self.new:
                ids = shard.pair_ids()
                self._tasks[shard] = kept.among(ids)
                earlier = [sample.without(_as_numbers(ids)) for sample in earlier]  # at most `train.replay_pairs` pairs
                progress.advance()
            for shard in self.replayed:
                self._tasks[shard] = earlier[0].among(shard.pair_ids())
                progress.advance()

    @property
    def shards(self) -> list[PairShard]:
        """All shards, in order."""
        return [*self.new, *self.replayed]

    @property
    def n_pairs(self) -> int:
        """Number of pairs to train on or to hold out."""
        return sum(len(pairs.ids) for pairs in self._tasks.values())

    def rows_of(self, shard: PairShard) -> PairTasks:
        """The pairs of a shard to train on or to hold out, in their order."""
        return self._tasks[shard]

    def tasks_of(self, shard: PairShard) -> dict[str, str]:
        """Id -> task of these pairs."""
        return self._tasks[shard].tasks()


def _as_numbers(pair_ids: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(pair_id, 16) for pair_id in pair_ids], np.uint64)
