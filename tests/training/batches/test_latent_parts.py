"""What changes the rows of a latent cache, and what its latents."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.models.text_to_image import TextToImageModel
from emuedit.training.batches import latent_files
from emuedit.training.batches.kept_pairs import PairTasks, TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from tests.training.tiny_pairs import TASKS, make_pair, write_pairs


@pytest.mark.slow
def test_what_is_kept_and_for_which_task_encodes_no_image_twice(
    base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved filters and another task predictor encode only what is kept for the first time; batches are as from a new cache."""
    pairs, cache = [make_pair(n) for n in range(6)], tmp_path / "cache"

    def build(folder: Path, kept: tuple[bool, ...], tasks: tuple[str, ...] = TASKS) -> int:
        monkeypatch.setattr("tests.training.tiny_pairs.KEPT", kept)
        monkeypatch.setattr("tests.training.tiny_pairs.TASKS", tasks)
        encoded["pictures"].clear()
        latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs, per_shard=6)), base_model, folder)
        return sum(shape[0] for shape in encoded["pictures"])

    assert build(cache, (True, False, False, False, True, False)) == 8
    assert build(cache, (False, False, False, False, True, False)) == 0, "one pair fewer"
    assert build(cache, (True, True, False, True, True, False)) == 6, "pair 3, mirrored, too, and 1, which names a side"
    assert build(cache, (True, True, False, True, True, False), ("text", *TASKS[1:])) == 0
    assert build(tmp_path / "new", (True, True, False, True, True, False), ("text", *TASKS[1:])) == 14, "all but one mirrored"
    grown, new = LatentCache(cache, 0.0), LatentCache(tmp_path / "new", 0.0)
    batches = [c.batch(c.train, np.arange(4), np.ones(4, bool)) for c in (grown, new)]
    assert batches[0].ids == batches[1].ids == tuple(pairs[n].id for n in (0, 1, 3, 4))
    assert torch.equal(batches[0].tasks, batches[1].tasks)
    torch.testing.assert_close(batches[0].source, batches[1].source, rtol=2e-3, atol=2e-3)
    assert build(tmp_path / "new", (True, True, False, True, True, False)) == 0, "what was a text may be mirrored now"
    assert (LatentCache(tmp_path / "new", 0.0).train.mirrored_position >= 0).tolist() == [True, False, True, True]
    assert (grown.train.mirrored_position >= 0).tolist() == [False, False, True, True], "text and a side are not mirrored"
    assert build(tmp_path / "plain", (True, True, False, True, True, False)) == 14
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, tmp_path / "unmirrored", mirrored=False)
    assert (LatentCache(tmp_path / "unmirrored", 0.0).train.mirrored_position == -1).all()


def test_other_text_encoders_leave_the_latents_as_they_are(
    base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any]
) -> None:
    data = write_pairs(tmp_path, [make_pair(n) for n in range(6)])
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache", text_key="a")
    encoded["pictures"].clear(), encoded["texts"].clear()
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache", text_key="b")
    assert not encoded["pictures"]
    assert len(encoded["texts"]) == 6
    assert not list((tmp_path / "cache").glob("a-*"))
    assert len(LatentCache(tmp_path / "cache", 0.0).train) == 5


@pytest.mark.slow
def test_a_kill_while_unused_files_are_deleted_leaves_no_incomplete_shard(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, cache = [make_pair(n) for n in range(6)], tmp_path / "cache"
    both, first = write_pairs(tmp_path / "both", pairs), write_pairs(tmp_path / "first", pairs[:4])
    unlink, n_deleted = Path.unlink, []

    def stop_soon(path: Path, missing_ok: bool = False) -> None:
        n_deleted.append(path)
        if len(n_deleted) % 2 == 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    latent_files.build(TrainingPairs(*both), base_model, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop_soon)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                latent_files.build(TrainingPairs(*first), base_model, cache)
            with patch.context() as unpatched:
                unpatched.setattr(Path, "unlink", unlink)
                latent_files.build(TrainingPairs(*both), base_model, cache)
            loaded = LatentCache(cache, 0.0)
            assert loaded.batch(loaded.train, np.arange(5), np.ones(5, bool)).source.isfinite().all()


@pytest.mark.slow
def test_the_tasks_of_one_shard_are_in_memory_at_a_time(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory does not grow with the number of shards."""

    class Tasks(dict[str, str]):
        """A dictionary whose end can be seen."""

    alive: set[int] = set()
    most: list[int] = []
    tasks_of = PairTasks.tasks

    def count(rows: PairTasks) -> Tasks:
        tasks = Tasks(tasks_of(rows))
        alive.add(number := len(most))
        weakref.finalize(tasks, alive.discard, number)
        most.append(len(alive))
        return tasks

    monkeypatch.setattr(PairTasks, "tasks", count)
    latent_files.build(
        TrainingPairs(*write_pairs(tmp_path, [make_pair(n) for n in range(12)], per_shard=2)), base_model, tmp_path / "cache"
    )
    assert len(most) >= 6
    assert max(most) <= 2
    assert len(LatentCache(tmp_path / "cache", 0.0).train) == 10
