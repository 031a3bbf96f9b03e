"""The edits of a task are made, judged and stored a few at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.data.image_io import Pixels
from emuedit.data.publish import read_folder
from emuedit.data.records import EvalRecord
from emuedit.metrics import benchmark, edit_scores
from emuedit.metrics.benchmark import EditCounts
from emuedit.metrics.systems import Systems
from emuedit.stages import MEMORY_ENV, evaluation
from tests.stages.workspace import load_params, read_files

N = 10


class Scorer:
    """In place of CLIP and DINO: an embedding does not depend on the others of its batch, not even by rounding."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.nn.functional.normalize(image.flatten()[:8], dim=0) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.nn.functional.normalize(torch.arange(8.0) + len(text), dim=0) for text in texts])


@dataclass
class Verdict:
    success: np.ndarray
    reason: tuple[str, ...]


@dataclass
class Edits:
    """Edits of random images; without reference results from `without_results` on."""

    task: str
    numbers: range
    without_results: int

    @property
    def instructions(self) -> list[str]:
        return [f"edit {number}" for number in self.numbers]

    input_captions = output_captions = instructions

    @property
    def before(self) -> Pixels:
        return np.stack([np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8) for number in self.numbers])

    @property
    def exact(self) -> Pixels | None:
        return 255 - self.before if self.numbers[-1] < self.without_results else None

    def judge(self, output: Pixels) -> Verdict:
        success = (output == 255 - self.before)[:, 1:].all((1, 2, 3)) & (np.array(self.numbers) % 3 > 0)
        return Verdict(success, tuple("" if is_right else "wrong" for is_right in success))


class Source:
    """A benchmark with N edits of each task; remembers the calls."""

    def __init__(self, without_results: int = N) -> None:
        self.without_results, self.calls = without_results, list[tuple[str, int, int]]()

    def __call__(self, task: str, split: str, start: int, n: int) -> Edits:
        self.calls.append((task, start, n))
        return Edits(task, range(start, start + n), self.without_results)

    def check(self, task: str, split: str, n: int) -> None:
        if n > N:
            raise ValueError(f"want {n} edits of {task}")


class CountedSource(Source):
    """A benchmark with a table: task -> its edits, and those that can be judged."""

    def __init__(self, counts: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.counts = counts

    def count(self, task: str, split: str) -> EditCounts:
        return EditCounts(*self.counts[task])

    def check(self, task: str, split: str, n: int) -> None:
        if n > self.counts[task][1]:
            raise ValueError(f"want {n} edits of {task}")


class InvertingSystems(Systems):
    """The system `true_task` inverts the image, and adds the seed to a pixel."""

    def true_task(self, edits: Any, seeds: list[int]) -> tuple[Pixels, list[str]]:
        outputs = 255 - edits.before
        outputs[:, 0, 0, 0] = [seed % 2 * 255 for seed in seeds]
        return outputs, [edits.task] * len(seeds)


@pytest.fixture(autouse=True)
def light_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "Systems", InvertingSystems)
    for models in (evaluation.clip, evaluation.dino):
        monkeypatch.setattr(models, "load", lambda *_: Scorer())


def evaluate(root: Path, patch: pytest.MonkeyPatch, at_once: int, source: Source, **changes: Any) -> dict[str, bytes]:
    patch.setattr(benchmark, "load", lambda *_: source)
    patch.setattr(edit_scores, "EDITS_AT_ONCE", at_once)
    values = {"systems": ("identity", "true_task"), "tasks": ("remove", "add"), "n_edits": N, "sheet_columns": 2, "slices": {}}
    values |= {"dtype": "float32", "device": "cpu"} | changes
    evaluation.run(load_params(evaluation.EvaluationParams, "evaluation", **values), root)
    return read_files(root / evaluation.OUT)


@pytest.mark.slow
@pytest.mark.parametrize("without_results", [N, 5])
def test_the_number_of_edits_in_memory_does_not_change_the_results(
    without_results: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the reference results, which a benchmark gives only if all edits of a call have one."""
    together, by_seven, by_one = (evaluate(tmp_path / str(n), monkeypatch, n, Source(without_results)) for n in (64, 7, 1))
    assert together == by_seven == by_one
    records = list(read_folder(tmp_path / "1" / evaluation.OUT, EvalRecord, verify=True))
    assert len(records) == 4 * N
    assert {record.exact is not None for record in records} == {without_results == N}
    assert sum(record.success for record in records) == 12, "6 of 10 outputs of one system, in each task"
    names = {name for name in together if name.endswith(".parquet")}
    assert names == {f"shard-{system}-{task}.parquet" for system in ("identity", "true_task") for task in ("remove", "add")}


@pytest.mark.slow
def test_a_stopped_evaluation_makes_only_the_edits_that_were_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StoppedSource(Source):
        def __call__(self, task: str, split: str, start: int, n: int) -> Edits:
            if (task, start) == ("add", 8):
                raise KeyboardInterrupt
            return super().__call__(task, split, start, n)

    values = {"systems": ("true_task",)}
    uninterrupted = evaluate(tmp_path / "uninterrupted", monkeypatch, 4, Source(), **values)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "stopped", monkeypatch, 4, StoppedSource(), **values)
    capsys.readouterr()
    source = Source()
    assert evaluate(tmp_path / "stopped", monkeypatch, 4, source, **values) == uninterrupted
    assert source.calls == [("add", 8, 2)]
    progress = capsys.readouterr().err
    assert "evaluation: 18/20 edits" in progress
    assert "evaluation: 20/20 edits, 100%" in progress, "also of a system that reports no steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "n", "task"), [(CountedSource({"remove": (N, N), "add": (N, N - 1)}), N, "add"), (Source(), N + 1, "remove")]
)
def test_a_benchmark_with_too_few_edits_is_refused_before_any_is_made(
    source: Source, n: int, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one that can check, but not count."""
    with pytest.raises(ValueError, match=f"want {n} edits of {task}"):
        evaluate(tmp_path, monkeypatch, 64, source, n_edits=n)
    assert not source.calls


@pytest.mark.slow
def test_all_edits_of_each_task_are_measured_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CountedSource({"remove": (9, 7), "add": (4, 4)})
    files = evaluate(tmp_path, monkeypatch, 5, source, systems=("true_task",), n_edits=None)
    assert source.calls == [("remove", 0, 5), ("remove", 5, 2), ("add", 0, 4)]
    metrics = json.loads(files["metrics.json"])
    assert metrics["edits"] == {
        "remove": {"in_table": 9, "usable": 7, "measured": 7},
        "add": {"in_table": 4, "usable": 4, "measured": 4},
    }
    assert metrics["note"] == "left out, with equal captions and no result: 2 of 9 edits of remove"
    assert list(metrics)[-1] == "edits", "after the success, since a commit message shows only the first metrics"


@pytest.mark.slow
def test_a_task_with_few_edits_does_not_make_the_batches_of_others_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MEMORY_ENV, "1")
    evaluate(tmp_path, monkeypatch, 64, CountedSource({"remove": (9, 9), "add": (2, 2)}), systems=("identity",), n_edits=None)
    assert "evaluation: ran out of memory; retrying with at most 4 edits per batch" in capsys.readouterr().out
