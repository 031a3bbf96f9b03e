"""Images that several processes encode: the same files as of one, and what happens when one of them fails."""

import dataclasses
import itertools
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from emuedit.failures import FailureKind
from emuedit.local_processes import WorkerFailedError
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from emuedit.training.batches import encoding_processes, latent_files
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_files import EncodingJob
from tests.stages.workspace import read_files
from tests.training.tiny_pairs import make_pair, write_pairs
from tests.warm_server import warm_up

CPU = Runtime("cpu", "float32")
BUCKETS = AspectBuckets.around(16, 2.0, 4)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes may encode, even few pairs; they need not import this program."""
    warm_up()
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(encoding_processes, "available_cores", lambda: 2)
    monkeypatch.setattr(encoding_processes, "MIN_PAIRS", {"cpu": 1})


def write_many(root: Path, n: int = 12) -> TrainingPairs:
    """Six shards with pairs of several sizes."""
    return TrainingPairs(*write_pairs(root, [make_pair(i, (16 + 8 * (i % 3 == 0), 24)) for i in range(n)], per_shard=2))


def build(pairs: TrainingPairs, base_model: TextToImageModel, folder: Path, encode: Any) -> dict[str, bytes]:
    latent_files.build(pairs, base_model, folder, BUCKETS, encode=encode)
    return read_files(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_write_the_files_of_one(
    dtype: str, base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, runtime = write_many(tmp_path), Runtime("cpu", dtype)
    with runtime.autocast():
        by_one = build(pairs, base_model, tmp_path / "one", encoding_processes.in_processes(base_model, runtime, 1))
        with monkeypatch.context() as patch:
            patch.setattr(EncodingJob, "run", None)  # in this process; the others have their own class
            by_two = build(pairs, base_model, tmp_path / "two", encoding_processes.in_processes(base_model, runtime, 2))
    assert by_one == by_two
    assert len([name for name in by_one if name.endswith(".pairs.npy")]) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_an_encoding_by_two_processes_that_was_stopped_is_resumed(base_model: TextToImageModel, tmp_path: Path) -> None:
    pairs, encode = write_many(tmp_path), encoding_processes.in_processes(base_model, CPU, 2)
    uninterrupted = build(pairs, base_model, tmp_path / "uninterrupted", None)

    def stop(jobs: Sequence[EncodingJob]) -> Generator[str, None, None]:
        encoded = encode(jobs)
        yield from itertools.islice(encoded, 2)
        encoded.close()  # kills the processes, as the end of this one does
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(pairs, base_model, tmp_path / "cache", stop)
    finished = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*.pairs.npy")}
    assert 2 <= len(finished) < 6
    assert build(pairs, base_model, tmp_path / "cache", encode) == uninterrupted
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_an_error_of_a_process_names_the_shard_and_the_cause(base_model: TextToImageModel, tmp_path: Path) -> None:
    mixed = dataclasses.replace(make_pair(1), target=make_pair(1, (24, 16)).target)
    pairs = TrainingPairs(*write_pairs(tmp_path, [make_pair(0), mixed], per_shard=1))
    with pytest.raises(WorkerFailedError, match=r"in \S*shard-00001\.parquet: want source and target of one size") as failure:
        build(pairs, base_model, tmp_path / "cache", encoding_processes.in_processes(base_model, CPU, 2))
    assert failure.value.kind is FailureKind.OTHER
    assert "Traceback" not in str(failure.value)


@pytest.mark.slow
def test_few_pairs_are_encoded_without_other_processes(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if many shards have other kept pairs than before, of which few are not encoded yet."""

    def start(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("starts processes")

    monkeypatch.setattr(encoding_processes.local_processes, "start", start)
    monkeypatch.setattr(encoding_processes, "available_cores", lambda: 8)
    pairs, cache = [make_pair(n) for n in range(24)], tmp_path / "cache"
    encode = encoding_processes.in_processes(base_model, CPU, 8)
    monkeypatch.setattr(encoding_processes, "MIN_PAIRS", {"cpu": 21})
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs, per_shard=6)), base_model, cache, encode=encode)
    monkeypatch.setattr("tests.training.tiny_pairs.KEPT", (True, True, True, True, True, True))  # four pairs more
    monkeypatch.setattr(encoding_processes, "MIN_PAIRS", {"cpu": 5})
    kept = TrainingPairs(*write_pairs(tmp_path, pairs, per_shard=6))
    latent_files.build(kept, base_model, cache, encode=encode)
    monkeypatch.setattr(encoding_processes, "MIN_PAIRS", {"cpu": 4})
    with pytest.raises(AssertionError, match="starts processes"):
        latent_files.build(kept, base_model, tmp_path / "other cache", encode=encode)


@pytest.mark.parametrize(
    ("device", "n_training", "processes"), [("cuda", 8, 3), ("cuda", 2, 2), ("cuda:1", 8, 1), ("mps", 8, 1), ("cpu", 8, 4)]
)
def test_as_many_processes_encode_as_train_on_this_machine(
    device: str, n_training: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_processes, "visible_gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(encoding_processes, "available_cores", lambda: 4)
    encode: Any = encoding_processes.in_processes(None, Runtime(device, "float32"), n_training)  # type: ignore[arg-type]
    assert encode.args[2] == processes
