import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.config import ParamsError
from emuedit.editing.api import Editor
from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import Edited, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.metrics import report
from emuedit.metrics.benchmark import Benchmark
from emuedit.metrics.edit_scores import REFUSAL, evaluate_system
from emuedit.metrics.systems import Systems, make_edits
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.predictor import task_predictor
from emuedit.predictor.task_predictor import NO_EDIT, TaskPrediction
from emuedit.runtime import Runtime

RUNTIME, SETTINGS = Runtime("cpu", "float32"), EditSettings(steps=3)
ToyEdits = Callable[..., Benchmark]


class InvertingSampler:
    """Returns the negative of each picture, knows one task that was learned by inversion, and keeps its arguments."""

    tasks, inverted_tasks = ("local", "add", "contour"), ("contour",)
    max_pixels_per_batch = 0
    resolution_px, grid_px = 1024, 8

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.packs: list[str] = []

    def sample(self, images: torch.Tensor, *arguments: Any) -> Edited:
        self.calls.append(arguments)
        return Edited(-images, (None,) * len(images))

    def add_pack(self, file: Path) -> None:
        self.packs.append(file.name)


class AlwaysLocalPredictor:
    """It knows no pack: `contour` came without instructions."""

    new_tasks = ()

    def predict(self, texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
        return [TaskPrediction("local", 0.9)] * len(texts)


@dataclasses.dataclass(frozen=True)
class AcceptingEdits:
    """Edits with a judge that accepts every output."""

    edits: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.edits, name)

    def judge(self, output: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(success=np.ones(len(output), bool), reason=("",) * len(output))


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> InvertingSampler:
    """Takes the place of the trained editor."""
    fake = InvertingSampler()
    monkeypatch.setattr(sampling, "load", lambda folder, runtime: (fake.calls.append((folder, runtime)), fake)[1])
    return fake


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the place of the trained task predictor."""
    monkeypatch.setattr(task_predictor, "load", lambda folder, device: AlwaysLocalPredictor())


def test_identity_returns_the_input_and_needs_no_model(tmp_path: Path, toy_edits: ToyEdits) -> None:
    edits = toy_edits("remove", 3)
    outputs, tasks = Systems(tmp_path, SETTINGS, RUNTIME)["identity"](edits, [1, 2, 3])
    np.testing.assert_array_equal(outputs, edits.before)
    assert tasks == ["remove"] * 3


@pytest.mark.parametrize(
    ("system", "task", "used"),
    [("emuedit", "remove", "local"), ("true_task", "remove", "remove"), ("emuedit", "contour", "contour")],
)
def test_the_editor_gets_the_predicted_or_the_true_task(
    system: str, task: str, used: str, tmp_path: Path, toy_edits: ToyEdits, sampler: InvertingSampler, predictor: None
) -> None:
    """The task predictor does not know a task that was learned by inversion, which is then given."""
    edits, report = toy_edits(task, 2), print
    outputs, tasks = Systems(tmp_path, SETTINGS, RUNTIME, report)[system](edits, [7, 8])
    np.testing.assert_array_equal(outputs, 255 - edits.before)
    assert tasks == [used] * 2
    assert sampler.calls[1:] == [(edits.instructions, [used] * 2, SETTINGS, [7, 8], SamplingOptions(report=report))]


@pytest.fixture(scope="module")
def refusing_predictor(tmp_path_factory: pytest.TempPathFactory) -> task_predictor.TaskPredictor:
    """An untrained predictor that refuses every text: no sum of probabilities reaches its threshold."""
    weights = Path(__file__).parents[2] / "toyworld/weights/t5"
    trained = task_predictor.from_t5(str(weights), InvertingSampler.tasks, 32)
    trained.calibrate(1.0, min_support=2.0)
    return trained


def test_an_instruction_that_the_predictor_refuses_is_a_failure(
    tmp_path: Path, toy_edits: ToyEdits, sampler: InvertingSampler, monkeypatch: pytest.MonkeyPatch,
    refusing_predictor: task_predictor.TaskPredictor,
) -> None:  # fmt: skip
    """`Editor.edit` raises for it, so users get no edit; the judge accepts everything here."""
    monkeypatch.setattr(task_predictor, "load", lambda folder, device: refusing_predictor)
    edits = AcceptingEdits(toy_edits("local", 3))
    systems = Systems(tmp_path, SETTINGS, RUNTIME)
    outputs, tasks = systems["emuedit"](edits, [1, 2, 3])
    np.testing.assert_array_equal(outputs, edits.before)
    assert tasks == [NO_EDIT] * 3
    records = [record for name in ("emuedit", "true_task") for record in evaluate_system(name, systems[name], edits, None, 0)]
    assert [(record.success, record.reason) for record in records] == [(False, REFUSAL)] * 3 + [(True, "")] * 3
    tables = report.summarise(records, ("local",))
    shares = {name: [tables[name][system]["local"] for system in ("emuedit", "true_task")] for name in ("edit_success", "router")}
    assert shares == {"edit_success": [0.0, 1.0], "router": [0.0, 1.0]}
    assert tables["refused"] == {"emuedit": {"overall": 1.0, "local": 1.0}, "true_task": {"overall": 0.0, "local": 0.0}}


def test_a_refusal_does_not_change_the_other_edits(
    tmp_path: Path, toy_edits: ToyEdits, sampler: InvertingSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RefusesSecond(AlwaysLocalPredictor):
        def predict(self, texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
            return [TaskPrediction("local", 0.9, refused=row == 1) for row in range(len(texts))]

    monkeypatch.setattr(task_predictor, "load", lambda folder, device: RefusesSecond())
    edits = toy_edits("remove", 3)
    outputs, tasks = Systems(tmp_path, SETTINGS, RUNTIME)["emuedit"](edits, [1, 2, 3])
    assert tasks == ["local", NO_EDIT, "local"]
    np.testing.assert_array_equal(outputs, np.stack([255 - edits.before[0], edits.before[1], 255 - edits.before[2]]))


def test_less_is_edited_at_once_where_a_divisor_says_so(tmp_path: Path, toy_edits: ToyEdits, sampler: InvertingSampler) -> None:
    """After memory ran out: a part of a few edits of these sizes, or of what the editor allows, whichever is less."""
    few_pixels, allowed = 8 * 64**2, sampling.MAX_PIXELS_PER_BATCH
    for divisor, size, resolution_px, expected in (
        (1, 64, 1024, allowed),
        (2, 64, 1024, few_pixels // 2),
        (4, 64, 1024, few_pixels // 4),
        (2, 1024, 1024, allowed // 2),
        (2, 1024, 64, few_pixels // 2),
    ):
        sampler.max_pixels_per_batch, sampler.resolution_px = allowed, resolution_px
        edits = toy_edits("remove", 1)
        edits = dataclasses.replace(edits, before=np.zeros((1, size, size, 3), np.uint8))
        Systems(tmp_path, SETTINGS, RUNTIME, divisor=divisor)["true_task"](edits, [7])
        assert sampler.max_pixels_per_batch == expected


@pytest.mark.slow
@pytest.mark.parametrize(("resolution_px", "changes"), [(32, {}), (64, {"resolution": 32}), (32, {"crop": 1})])
def test_outputs_are_those_of_the_editor_that_users_run(
    resolution_px: int, changes: dict[str, int], make_sampler: Callable[..., EditSampler], toy_edits: ToyEdits
) -> None:
    """Edits of 64 px, which an editor of 32 px makes smaller and composites into the image."""
    editor_sampler = make_sampler()
    edits = dataclasses.replace(toy_edits("remove", 2), instructions=["remove it", "make it red"])
    editor_sampler.resolution_px = resolution_px
    settings = SETTINGS.with_changes({"steps": 2, "seed": 5, **changes})
    outputs = make_edits(editor_sampler, edits, ["remove", "local"], settings, [5, 6])
    expected = Editor(editor_sampler, None, settings).edit(list(edits.before), edits.instructions, ["remove", "local"])
    np.testing.assert_array_equal(outputs, np.stack(expected))
    full_size = editor_sampler.sample(from_uint8(edits.before), edits.instructions, ["remove", "local"], settings, [5, 6])
    assert (outputs != to_uint8(full_size.images)).any()


def test_models_are_loaded_once_and_only_when_they_are_needed(
    tmp_path: Path, toy_edits: ToyEdits, sampler: InvertingSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_predictor, "load", lambda folder, device: pytest.fail("the true task needs no predictor"))
    (tmp_path / "inversion").mkdir(parents=True)
    for name in ("b.safetensors", "a.safetensors", "notes.txt"):
        (tmp_path / "inversion" / name).touch()
    systems = Systems(tmp_path, SETTINGS, RUNTIME)
    assert sampler.calls == []
    for _ in range(2):
        systems["true_task"](toy_edits("add", 1), [0])
    loads = [call for call in sampler.calls if len(call) == 2]
    assert loads == [(tmp_path / "editor", RUNTIME)]
    assert sampler.packs == ["a.safetensors", "b.safetensors"]


def test_an_unknown_system_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="want systems from identity, emuedit, true_task; got 'magic'"):
        Systems(tmp_path, SETTINGS, RUNTIME)["magic"]
