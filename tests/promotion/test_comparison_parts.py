"""The edits of a task are made and judged a few at a time; the measurement is that of all together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emuedit.data.image_io import Pixels
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.shards import write_shard
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, edit_scores
from emuedit.metrics.systems import Systems
from emuedit.promotion import comparison
from emuedit.promotion.comparison import ComparisonConditions
from emuedit.promotion.gate import Measurement

N = 5
CONDITIONS = ComparisonConditions("evaluation", "photos", ("local",), N, EditSettings(), device="cpu", dtype="float32")


@dataclass
class Verdict:
    success: np.ndarray
    reason: tuple[str, ...]


class ExactEdits:
    """Edits of random images, of which the first three have a reference result; `exact` is None unless all have one."""

    def __init__(self, task: str, numbers: range) -> None:
        self.task, self.numbers = task, numbers
        self.instructions = self.input_captions = self.output_captions = [f"edit {number}" for number in numbers]

    @property
    def before(self) -> Pixels:
        return np.stack([np.random.default_rng(number).integers(50, 200, (16, 16, 3), np.uint8) for number in self.numbers])

    @property
    def references(self) -> list[Pixels | None]:
        half = np.arange(16)[:, None, None] < 8
        results = [np.where(half, 255, image).astype(np.uint8) for image in self.before]
        return [result if number < 3 else None for number, result in zip(self.numbers, results, strict=True)]

    @property
    def exact(self) -> Pixels | None:
        results = [result for result in self.references if result is not None]
        return np.stack(results) if len(results) == len(self.numbers) else None

    def judge(self, output: Pixels) -> Verdict:
        return Verdict(np.array(self.numbers) % 2 == 0, ("",) * len(output))


class EditsWithResults(ExactEdits):
    """They also have the results of single edits, as `PhotoEdits`."""

    @property
    def results(self) -> list[Pixels | None]:
        return self.references


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with models, whose edits depend on the seed."""

    def emuedit(self: Systems, edits: Any, seeds: list[int]) -> tuple[Pixels, list[str]]:
        assert len(seeds) <= edit_scores.EDITS_AT_ONCE
        darker = np.array(seeds)[:, None, None, None] % 40
        return (edits.before - darker).astype(np.uint8), [edits.task] * len(seeds)

    monkeypatch.setattr(Systems, "emuedit", emuedit)
    (tmp_path / "dvc.yaml").write_text("stages: {evaluation: {deps: [models/editor]}}\n")
    (tmp_path / "models/editor").mkdir(parents=True)
    (tmp_path / "models/editor/weights.safetensors").write_text("new")
    return tmp_path


def load_source(kind: type[ExactEdits], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make `kind` the edits of the benchmark. Returns the number of edits of each call."""
    sizes: list[int] = []

    def source(task: str, split: str, start: int, n: int) -> Any:
        sizes.append(n)
        return kind(task, range(start, start + n))

    monkeypatch.setattr(benchmark, "load", lambda *_: source)
    return sizes


def measure_both(workspace: Path) -> list[Measurement]:
    return [
        comparison.measure(workspace / "models", "new", CONDITIONS, workspace),
        comparison.measure_nothing(CONDITIONS, workspace),
    ]


def publish_evaluation(workspace: Path, **changes: Any) -> None:
    """Publish an evaluation of the workspace's models, without references; `changes` replace its params."""
    systems = Systems(workspace / "models", CONDITIONS.settings, comparison.Runtime("cpu", "float32"))
    records = edit_scores.evaluate_system("emuedit", systems.emuedit, EditsWithResults("local", range(N)), None, 0)
    assert {record.exact for record in records} == {None}
    settings = {"settings": CONDITIONS.settings.model_dump(mode="json")}
    params = {"benchmark": "photos", "n_edits": N, "split": "held_out", "dtype": "float32"} | settings
    scratch = scratch_folder(workspace, "evaluation", "key")
    write_shard(scratch / "shard-emuedit-local.parquet", records)
    publish(scratch, workspace / comparison.EVALUATION, "evaluation", params | changes, {})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n_references"), [(ExactEdits, 0), (EditsWithResults, 3)])
def test_the_number_of_edits_in_memory_does_not_change_a_measurement(
    kind: type[ExactEdits], n_references: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = load_source(kind, monkeypatch)
    together = measure_both(workspace)
    assert max(sizes) == N
    sizes.clear()
    monkeypatch.setattr(edit_scores, "EDITS_AT_ONCE", 2)
    monkeypatch.setattr(comparison, "_CACHE", Path("scratch/other"))
    assert measure_both(workspace) == together
    assert max(sizes) == 2
    changes = together[0].untouched["local"]
    assert together[0].success == {"local": [True, False, True, False, True]}
    assert len({change for change in changes if change is not None}) == n_references, "seeds depend on the position"


def test_the_records_of_an_evaluation_get_their_references_a_few_at_a_time(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = load_source(EditsWithResults, monkeypatch)
    (expected, _) = measure_both(workspace)
    publish_evaluation(workspace)
    monkeypatch.setattr(edit_scores, "EDITS_AT_ONCE", 2)
    monkeypatch.setattr(comparison, "_CACHE", Path("scratch/other"))
    monkeypatch.setattr(Systems, "emuedit", None)  # the records are not made again
    sizes.clear()
    measured = comparison.measure(workspace / "models", "new", CONDITIONS, workspace)
    assert measured == replace(expected, conditions_key=measured.conditions_key)
    assert max(sizes) == 2
