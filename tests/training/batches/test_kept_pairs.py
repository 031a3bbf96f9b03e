"""Every kept pair has a task in 10 bytes, and a training opens each shard of pairs once to know its pairs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emuedit.data.shards import ShardError
from emuedit.models.text_to_image import TextToImageModel
from emuedit.training import training_checks
from emuedit.training.batches import latent_files, replay
from emuedit.training.batches.kept_pairs import KeptPairs, TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from tests.training.tiny_pairs import KEPT, TASKS, make_pair, write_pairs


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, ...]]]:
    """(root, name of the shard, columns read) -> how often it was read so, below a `data` or `replay` folder."""
    reads = Counter[tuple[str, ...]]()

    class CountingFile(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, path: Path, **options: Any) -> None:
            self.path = Path(path)
            super().__init__(path, **options)

        def read(self, columns: Any = None, **options: Any) -> Any:
            reads[(self.path.parent.name, self.path.name, *(columns or ["all columns"]))] += 1
            return super().read(columns, **options)

    with patch.context() as counting:
        counting.setattr(pq, "ParquetFile", CountingFile)
        yield reads


def test_the_verdicts_of_kept_pairs(tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(6)]
    _, dataset = write_pairs(tmp_path, pairs)
    ids = [pair.id for pair in reversed(pairs)]
    kept = KeptPairs.read(dataset).tasks_of([*ids, "0" * 16, "f" * 16])
    assert list(kept.items()) == [(pairs[n].id, TASKS[n]) for n in reversed(range(6)) if KEPT[n]]
    assert KeptPairs.read(write_pairs(tmp_path / "none", [])[1]).tasks_of(ids) == {}


@pytest.mark.parametrize("stage", ["pairs", "dataset"])
def test_a_truncated_shard_is_named(tmp_path: Path, stage: str) -> None:
    folders, dataset = write_pairs(tmp_path, [make_pair(n) for n in range(4)])
    shard = tmp_path / "data" / stage / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ShardError, match=rf"{shard} is damaged or truncated .*; delete it and run its stage again"):
        TrainingPairs(folders, dataset)


@pytest.mark.slow
def test_a_training_without_new_pairs_opens_a_shard_once(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And reads only ids: a shard may have gigabytes of images, and dozens of scores."""
    folders, dataset = write_pairs(tmp_path, [make_pair(n, (16, 16)) for n in range(24)], per_shard=4)
    latent_files.build(TrainingPairs(folders, dataset), base_model, tmp_path / "old cache")
    replay.write(tmp_path / "replay", LatentCache(tmp_path / "old cache", 0.0), folders, None, 8)
    latent_files.build(TrainingPairs(folders, dataset, tmp_path / "replay"), base_model, tmp_path / "cache")
    capsys.readouterr()
    with counted(monkeypatch) as reads:
        pairs = TrainingPairs(folders, dataset, tmp_path / "replay")
        tasks = training_checks.tasks_to_train(pairs, 0.0)
        latent_files.build(pairs, base_model, tmp_path / "cache")
    names = [f"shard-{number:05d}.parquet" for number in range(6)]
    once = {("pairs", name, "id"): 1 for name in names} | {("dataset", name, "pair_id", "kept", "task"): 1 for name in names}
    once |= {("pairs", names[0], "id"): 2, ("verdicts", names[0], "pair_id", "kept", "task"): 1}  # shard 0 of the replay, too
    first_pairs = {
        ("pairs", name, "id", "parent_ids", "recipe"): 1 for name in names[:2]
    }  # until a training pair of each task is found
    assert reads == once | first_pairs
    assert len(tasks) == 4
    assert "train: read the ids of the pairs: 14/14 shards" in capsys.readouterr().err


@pytest.mark.slow
def test_a_replay_sample_that_is_complete_opens_no_further_shard(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, dataset = write_pairs(tmp_path, [make_pair(n, (16, 16)) for n in range(24)], per_shard=4)
    latent_files.build(TrainingPairs(folders, dataset), base_model, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    pairs = TrainingPairs(folders, dataset)
    first = dict.fromkeys(pairs.tasks_of(pairs.new[1]), "local")
    monkeypatch.setattr(replay, "sample", lambda *_: first)
    with counted(monkeypatch) as reads:
        replay.write(tmp_path / "replay", cache, folders, None, len(first))
    assert {name for _, name, *_ in reads} == {"shard-00000.parquet", "shard-00001.parquet"}
