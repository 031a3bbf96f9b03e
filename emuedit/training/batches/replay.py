"""The replay sample of an editor: training pairs kept for trainings that continue it (see `start`)."""

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
from emuedit.training.batches.kept_pairs import REPLAY_PAIRS, REPLAY_VERDICTS, pair_shards
from emuedit.training.batches.latent_cache import LatentCache

PAIRS_PER_SHARD = 64
"""Few, because a shard is in memory at once; more than one, because each shard adds 20 kB. All have the same score names."""


def write(out: Path, cache: LatentCache, folders: Sequence[Path], earlier: Path | None, n: int) -> None:
    """Write at most n training pairs to `out`, balanced over the tasks, each once.

    folders: folders of the pairs. earlier: a folder `replay` that was also used in training. A pair stays in the sample over
    several trainings as long as its random rank, which depends only on its id, is among the first.
    """
    tasks = sample(cache, n)
    counts = {"kept": len(tasks)}
    shutil.rmtree(out, ignore_errors=True)
    for name in (REPLAY_PAIRS, REPLAY_VERDICTS):
        (out / name).mkdir(parents=True)
    number, pending, missing = 0, list[Pair](), set(tasks)
    for shard in pair_shards([*folders, *([earlier / REPLAY_PAIRS] if earlier else [])]):
        if not missing:
            break
        if missing.isdisjoint(shard.pair_ids()):
            continue
        for pair in read_shard(shard.path, Pair):
            if pair.id not in missing:
                continue
            missing.remove(pair.id)  # a pair that was continued is also among the earlier ones
            if pending and (len(pending) == PAIRS_PER_SHARD or pair.scores.keys() != pending[0].scores.keys()):
                _write_shard(out, number, pending, tasks)
                number, pending = number + 1, []
            pending.append(pair)
    if pending:
        _write_shard(out, number, pending, tasks)
    for name in (REPLAY_PAIRS, REPLAY_VERDICTS):
        write_summary(out / name, f"replay {name}", "", {}, counts)


def _write_shard(out: Path, number: int, pairs: list[Pair], tasks: dict[str, str]) -> None:
    verdicts = [Verdict(pair.id, kept=True, task=tasks[pair.id], reasons=(), filters={}, scores={}) for pair in pairs]
    write_shard(shard_path(out / REPLAY_PAIRS, number), pairs, Pair)
    write_shard(shard_path(out / REPLAY_VERDICTS, number), verdicts, Verdict)


def sample(cache: LatentCache, n: int) -> dict[str, str]:
    """Id -> task of the sample: the first pairs of each task by rank, equally many per task if there are enough."""
    rows = cache.train
    ranks = np.array([seed_for("replay", pair_id) for pair_id in rows.ids(np.arange(len(rows)))], np.uint64)
    place = np.zeros(len(rows), np.int64)  # rank within its task
    for task in np.unique(rows.task):
        of_task = np.flatnonzero(rows.task == task)
        place[of_task[np.argsort(ranks[of_task])]] = np.arange(len(of_task))
    chosen: NDArray[np.int64] = np.lexsort((ranks, place))[:n]
    return dict(zip(rows.ids(chosen), (cache.task_names[task] for task in rows.task[chosen]), strict=True))
