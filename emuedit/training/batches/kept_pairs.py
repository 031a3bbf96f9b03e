"""The kept pairs and their tasks: verdicts of the stage `dataset`, one shard of pairs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emuedit.data.filters import read_columns
from emuedit.data.publish import read_summary

SHARDS = "shard-*.parquet"
REPLAY_PAIRS, REPLAY_VERDICTS = "pairs", "verdicts"
"""Sub-folders of a replay folder, in the formats of the stages `pairs` and `dataset`; all pairs are kept."""


@dataclass(frozen=True)
class PairShard:
    """A shard of pairs."""

    path: Path
    content: str
    """Hash of its content."""

    def pair_ids(self) -> list[str]:
        """Ids of its pairs, in order; reads only this column."""
        ids: list[str] = read_columns(self.path, "id")["id"].to_pylist()
        return ids

    def caption_ids(self) -> list[str]:
        """Ids of its pairs' captions, in order; reads only this column."""
        parents: list[list[str]] = read_columns(self.path, "parent_ids")["parent_ids"].to_pylist()
        return [caption_id for _, caption_id, *_ in parents]


@dataclass(frozen=True)
class KeptPairs:
    """The task of every kept pair, in 10 bytes per pair."""

    ids: NDArray[np.uint64]  # sorted
    task: NDArray[np.int16]  # of each id, a number of `names`
    names: tuple[str, ...]

    @classmethod
    def read(cls, dataset: Path) -> KeptPairs:
        """Read a published folder of verdicts. Raises ShardError if it is not published."""
        numbers: dict[str, int] = {}
        ids, tasks = [np.zeros(0, np.uint64)], [np.zeros(0, np.int16)]
        for shard in pair_shards([dataset]):
            columns: dict[str, list[Any]] = read_columns(shard.path, "pair_id", "kept", "task").to_pydict()
            kept = [(int(i, 16), t) for i, k, t in zip(columns["pair_id"], columns["kept"], columns["task"], strict=True) if k]
            ids.append(np.array([pair_id for pair_id, _ in kept], np.uint64))
            tasks.append(np.array([numbers.setdefault(task, len(numbers)) for _, task in kept], np.int16))
        all_ids, order = np.unique(np.concatenate(ids), return_index=True)
        return cls(all_ids, np.concatenate(tasks)[order], tuple(numbers))

    def tasks(self) -> dict[str, str]:
        """Id -> task of all pairs; for small folders."""
        return {f"{pair_id:016x}": self.names[task] for pair_id, task in zip(self.ids.tolist(), self.task.tolist(), strict=True)}

    def tasks_of(self, pair_ids: Sequence[str]) -> dict[str, str]:
        """Id -> task of the kept ones among these pairs, in their order."""
        id_numbers = np.array([int(pair_id, 16) for pair_id in pair_ids], np.uint64)
        rows = np.searchsorted(self.ids, id_numbers).clip(max=max(0, len(self.ids) - 1))
        is_kept = self.ids[rows] == id_numbers if len(self.ids) else np.zeros(len(id_numbers), np.bool_)
        return {pair_ids[i]: self.names[self.task[rows[i]]] for i in np.flatnonzero(is_kept).tolist()}


def pair_shards(folders: Sequence[Path]) -> list[PairShard]:
    """The shards of published folders, folder by folder, by name. Raises ShardError for a folder that is not published."""
    return [
        PairShard(folder / name, content)
        for folder in folders
        for name, content in sorted(read_summary(folder).shards.items())
        if Path(name).match(SHARDS)
    ]


class TrainingPairs:
    """The shards of a training, and the tasks of their pairs, which are read one shard at a time.

    `new` are the shards of the folders `pairs`, whose kept pairs are in `dataset`; `replayed` those of a replay folder, without
    the pairs that are also in `pairs`.
    """

    def __init__(self, pairs: Sequence[Path], dataset: Path, replay: Path | None = None) -> None:
        """Raises ShardError for a folder that is not published."""
        self._kept = KeptPairs.read(dataset)
        self._earlier: dict[str, str] = {}  # of at most `train.replay_pairs` pairs
        self.new, self.replayed = pair_shards(pairs), list[PairShard]()
        if replay is not None:
            self.replayed = pair_shards([replay / REPLAY_PAIRS])
            self._earlier = KeptPairs.read(replay / REPLAY_VERDICTS).tasks()
            for shard in self.new:
                for pair_id in self._earlier.keys() & set(shard.pair_ids()):
                    del self._earlier[pair_id]

    @property
    def shards(self) -> list[PairShard]:
        """All shards, in order."""
        return [*self.new, *self.replayed]

    def tasks_of(self, shard: PairShard) -> dict[str, str]:
        """Id -> task of the pairs of a shard to train on or to hold out, in their order."""
        if shard not in self.replayed:
            return self._kept.tasks_of(shard.pair_ids())
        return {pair_id: self._earlier[pair_id] for pair_id in shard.pair_ids() if pair_id in self._earlier}
