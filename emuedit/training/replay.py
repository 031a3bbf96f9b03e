"""The sample of its pairs that an editor keeps, for trainings that continue it (see `start`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emuedit.data.publish import shard_path, write_summary
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import read_shard, write_shard
from emuedit.runtime import seed_for
from emuedit.training.kept_pairs import REPLAY_PAIRS, REPLAY_VERDICTS, pair_shards
from emuedit.training.latent_cache import LatentCache

PAIRS_PER_SHARD = 64
"""Few, because they are in memory together; not one each, because a shard costs 20 kB. All of a shard have the same scores."""


def write(out: Path, cache: LatentCache, folders: Sequence[Path], earlier: Path | None, n: int) -> None:
    """Write at most n of the pairs that were trained on, as many of each task as there are, into `out`.

    folders: where the pairs lie. earlier: a folder `replay` that was trained on, too. A pair stays in the sample from training to
    training as long as its random rank, which follows from its id, is among the first.
    """
    tasks = sample(cache, n)
    counts = {"kept": len(tasks)}
    shutil.rmtree(out, ignore_errors=True)
    for name in (REPLAY_PAIRS, REPLAY_VERDICTS):
        (out / name).mkdir(parents=True)
    number, pending = 0, list[Pair]()
    for shard in pair_shards([*folders, *([earlier / REPLAY_PAIRS] if earlier else [])]):
        if tasks.keys().isdisjoint(shard.pair_ids()):
            continue
        for pair in read_shard(shard.path, Pair):
            if pair.id not in tasks:
                continue
            if pending and (len(pending) == PAIRS_PER_SHARD or pair.scores.keys() != pending[0].scores.keys()):
                _write_shard(out, number, pending, tasks)
                number, pending = number + 1, []
            pending.append(pair)
    if pending:
        _write_shard(out, number, pending, tasks)
    for name in (REPLAY_PAIRS, REPLAY_VERDICTS):
        write_summary(out / name, f"replay {name}", "", {}, counts)


def _write_shard(out: Path, number: int, pairs: list[Pair], tasks: dict[str, str]) -> None:
    verdicts = [Verdict(pair.id, kept=True, task=tasks[pair.id], reasons=(), gates={}, scores={}) for pair in pairs]
    write_shard(shard_path(out / REPLAY_PAIRS, number), pairs, Pair)
    write_shard(shard_path(out / REPLAY_VERDICTS, number), verdicts, Verdict)


def sample(cache: LatentCache, n: int) -> dict[str, str]:
    """Id -> task of the pairs to keep: the first of each task by their rank, equally many of all tasks that have enough."""
    rows = cache.train
    ranks = np.array([seed_for("replay", pair_id) for pair_id in rows.ids(np.arange(len(rows)))], np.uint64)
    place = np.zeros(len(rows), np.int64)  # among the pairs of its task
    for task in np.unique(rows.task):
        of_task = np.flatnonzero(rows.task == task)
        place[of_task[np.argsort(ranks[of_task])]] = np.arange(len(of_task))
    chosen: NDArray[np.int64] = np.lexsort((ranks, place))[:n]
    return dict(zip(rows.ids(chosen), (cache.task_names[task] for task in rows.task[chosen]), strict=True))
