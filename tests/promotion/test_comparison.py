"""Both editors are measured on the same edits, now; what was measured under other conditions is not used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emuedit.config import ParamsError
from emuedit.data.image_io import Pixels
from emuedit.data.publish import publish, scratch_folder, write_summary
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark, EditCounts
from emuedit.metrics.systems import Systems
from emuedit.promotion import comparison, promote
from emuedit.promotion.gate import GateError
from emuedit.tracking.registry import ModelVersion
from tests.repository import ROOT

PARAMS = """\
world: {benchmark: toyworld/edits/toy_benchmark.py}
evaluation: {tasks: [remove, background], n_edits: 4, settings: {steps: 3}, device: cpu, dtype: float32}
promotion: {min_edits: 2}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text("stages: {evaluation: {deps: [models/editor, judge.py]}}\n")
    (tmp_path / "judge.py").write_text("1")
    make_package(tmp_path / "models", "new")
    make_package(tmp_path / "champion", "old")
    return tmp_path


def make_package(folder: Path, weights: str) -> None:
    (folder / "editor").mkdir(parents=True)
    (folder / "editor/model_index.json").write_text(json.dumps({"_class_name": "EmuEditPipeline"}))
    (folder / "editor/weights.safetensors").write_text(weights)


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The editor `new` gives the exact results, `old` leaves the picture and darkens it. Returns (editor, task) of every call."""
    calls: list[tuple[str, str]] = []

    def emuedit(self: Systems, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
        weights = (self.package / "editor/weights.safetensors").read_text()
        calls.append((weights, edits.task))
        assert edits.exact is not None
        output = edits.exact if weights.startswith("new") else np.clip(edits.before, 51, None) - 51
        return output.astype(np.uint8), [edits.task] * len(seeds)

    monkeypatch.setattr(Systems, "emuedit", emuedit)
    return calls


@pytest.mark.slow
def test_measurements_hold_success_and_the_change_of_untouched_pixels(workspace: Path, edited: list[tuple[str, str]]) -> None:
    conditions = comparison.read_conditions(workspace)
    new = comparison.measure(workspace / "models", "new", conditions, workspace)
    old = comparison.measure(workspace / "champion", "old", conditions, workspace)
    assert new.success == {"remove": [True] * 4, "background": [True] * 4}
    assert old.success == {"remove": [False] * 4, "background": [False] * 4}
    assert new.untouched["remove"] == [0.0] * 4
    assert all(0.1 < value < 0.21 for value in old.untouched["remove"] if value is not None)
    assert new.size_bytes is not None
    assert new.conditions_key == old.conditions_key


@pytest.mark.slow
def test_a_champion_is_measured_once_until_edits_code_or_bytes_change(workspace: Path, edited: list[tuple[str, str]]) -> None:
    conditions = comparison.read_conditions(workspace)
    comparison.measure(workspace / "champion", "old", conditions, workspace)
    comparison.measure(workspace / "champion", "old", conditions, workspace)
    assert edited == [("old", "remove"), ("old", "background")]
    (workspace / "models/editor/weights.safetensors").write_text("newer")  # the challenger's bytes: no matter
    comparison.measure(workspace / "champion", "old", conditions, workspace)
    assert len(edited) == 2
    (workspace / "judge.py").write_text("2")
    comparison.measure(workspace / "champion", "old", conditions, workspace)
    assert len(edited) == 4
    (workspace / "champion/editor/weights.safetensors").write_text("older")
    comparison.measure(workspace / "champion", "old", conditions, workspace)
    assert len(edited) == 6


@pytest.mark.slow
def test_a_champion_stays_measured_through_many_challengers(workspace: Path, edited: list[tuple[str, str]]) -> None:
    conditions = replace(comparison.read_conditions(workspace), tasks=("remove",), n_edits=1)
    for number in range(comparison._KEPT_MEASUREMENTS + 2):
        (workspace / "models/editor/weights.safetensors").write_text(f"new {number}")
        comparison.measure(workspace / "champion", "old", conditions, workspace)
        comparison.measure(workspace / "models", "new", conditions, workspace)
    assert edited.count(("old", "remove")) == 1
    assert len(list((workspace / "scratch/promotion").iterdir())) == comparison._KEPT_MEASUREMENTS


def publish_evaluation(workspace: Path, steps: int) -> None:
    conditions = comparison.read_conditions(workspace)
    systems = Systems(workspace / "models", conditions.settings, comparison.Runtime("cpu", "float32"))
    shards = comparison._evaluate("new", systems, conditions, workspace, benchmark.load(conditions.benchmark))
    settings = conditions.settings.model_dump(mode="json") | {"steps": steps}
    params = {"benchmark": conditions.benchmark, "n_edits": 4, "split": "held_out", "settings": settings, "dtype": "float32"}
    scratch = scratch_folder(workspace, "evaluation", "key")
    for task, path in shards.items():
        shutil.copy(path, scratch / f"shard-emuedit-{task}.parquet")
    publish(scratch, workspace / comparison.EVALUATION, "evaluation", params, {})


@pytest.mark.parametrize(("steps", "calls"), [(3, 0), (9, 2)])
def test_the_evaluation_of_now_is_taken_over_if_it_made_the_same_edits(
    workspace: Path, edited: list[tuple[str, str]], steps: int, calls: int
) -> None:
    publish_evaluation(workspace, steps)
    edited.clear()
    comparison.measure(workspace / "models", "new", comparison.read_conditions(workspace), workspace)
    assert len(edited) == calls


def test_the_evaluation_of_other_bytes_is_not_taken_over(workspace: Path, edited: list[tuple[str, str]]) -> None:
    write_summary(workspace / "models/editor", "train", "key", {}, {})
    publish_evaluation(workspace, 3)
    edited.clear()
    (workspace / "models/editor/weights.safetensors").write_text("new, but edited")
    comparison.measure(workspace / "models", "new", comparison.read_conditions(workspace), workspace)
    assert len(edited) == 2


@pytest.mark.slow
def test_an_uncalibrated_judge_is_named_in_the_reason(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote.registry, "download_version", lambda uri: workspace / "champion")
    source = benchmark.load("toyworld/edits/toy_benchmark.py")

    class UncalibratedSource:
        uncalibrated_tasks = ("background", "add")

        def __call__(self, task: str, split: str, start: int, n: int) -> Benchmark:
            return source(task, split, start, n)

    champions = (None, ModelVersion(7, "run"))
    reasons = [promote.compare_with_champion(workspace / "models", "new", champion, workspace).reason for champion in champions]
    assert not any("uncalibrated" in reason for reason in reasons)
    monkeypatch.setattr(benchmark, "load", lambda reference, device="auto": UncalibratedSource())
    for champion in champions:
        reason = promote.compare_with_champion(workspace / "models", "new", champion, workspace).reason
        assert reason.endswith("; uncalibrated judge: background"), "add is not measured"


@pytest.mark.slow
def test_versions_are_compared_on_the_tasks_that_the_champion_was_promoted_with(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A challenger that was evaluated on fewer tasks than the champion gets away with nothing."""
    champion = ModelVersion(7, "run", {promote.TASKS_TAG: "remove,add"})
    monkeypatch.setattr(promote.registry, "download_version", lambda uri: workspace / "champion")
    decision = promote.compare_with_champion(workspace / "models", "new", champion, workspace)
    assert decision.promote
    assert [row.name for row in decision.rows] == ["overall", "remove", "background", "add"]
    assert {row.champion for row in decision.rows} == {0.0}
    assert {row.challenger for row in decision.rows} == {1.0}


@pytest.mark.slow
def test_the_first_model_is_compared_with_doing_nothing(workspace: Path, edited: list[tuple[str, str]]) -> None:
    decision = promote.compare_with_champion(workspace / "models", "new", None, workspace)
    assert decision.promote
    assert "of the identity baseline" in decision.reason


def test_speed_is_measured_by_turns(workspace: Path, edited: list[tuple[str, str]]) -> None:
    conditions = comparison.read_conditions(workspace)
    assert len(comparison.measure_speed([workspace / "models", workspace / "champion"], conditions)) == 2
    assert [name for name, _ in edited] == ["new", "old"] * 6, "five timed edits of each, and one that loads the models"


def test_other_work_on_the_machine_does_not_make_an_editor_slow(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [9.0, 9.0, 3.3, 1.0, 3.1, 1.1, 1.0, 1.2, 3.4, 3.0, 3.2, 1.0]  # the first ones load the models
    readings = iter(np.cumsum([value for duration in seconds for value in (0.0, duration)]))
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(readings))
    conditions = comparison.read_conditions(workspace)
    assert comparison.measure_speed([workspace / "models", workspace / "champion"], conditions) == pytest.approx([1.0, 1.0])


def test_a_workspace_without_an_evaluation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("world: {}\n")
    with pytest.raises(ParamsError, match="want the tasks and n_edits of an evaluation under evaluation"):
        comparison.read_conditions(tmp_path)


def test_the_default_gate_fits_the_default_evaluation() -> None:
    conditions, settings = comparison.read_conditions(ROOT), promote.read_gate_settings(ROOT)
    assert conditions.n_edits >= settings.min_edits


def test_the_edits_of_a_folder_are_counted_without_opening_images_and_models(workspace: Path) -> None:
    folder = workspace / "photos"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.png").write_bytes(b"not opened")
    rows = "".join(f"{name}.png,remove,do it,a dog,a cat\n" for name in "ab")
    (folder / "edits.csv").write_text(f"image,task,instruction,input_caption,output_caption\n{rows}")
    (folder / "judge.yaml").write_text("{clip: not/opened, dino: not/opened}\n")
    conditions = replace(comparison.read_conditions(workspace), benchmark=str(folder), tasks=("remove",), n_edits=2)
    comparison.check_tasks(conditions, "the champion")
    assert comparison.with_tasks(conditions, ["remove", "background"]).tasks == ("remove",)
    with pytest.raises(GateError, match="want 3 edits of remove"):
        comparison.check_tasks(replace(conditions, n_edits=3), "the champion")


def test_a_champion_with_tasks_that_the_benchmark_lacks_is_an_error(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = ModelVersion(7, "run", {promote.TASKS_TAG: "remove,flying"})
    monkeypatch.setattr(promote.registry, "download_version", lambda uri: workspace / "champion")
    with pytest.raises(GateError, match="want 4 edits of flying, with which models:/emuedit-editor/7 was promoted"):
        promote.compare_with_champion(workspace / "models", "new", champion, workspace)
    assert edited == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "measured", "note"),
    [
        ("remove", ("remove", "add"), ""),
        ("remove, background, local", ("remove", "add"), ""),
        ("remove, background, flying", ("remove",), "the benchmark has no edits of 1 of its tasks"),
    ],
)
def test_a_champion_is_measured_again_on_the_tasks_of_its_promotion(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch,
    tasks: str, measured: tuple[str, ...], note: str,
) -> None:  # fmt: skip
    """Other tasks in params.yaml change neither figure."""
    key = comparison.read_conditions(workspace).key(workspace)
    (workspace / "params.yaml").write_text(PARAMS.replace("remove, background", tasks.removesuffix(", flying")))
    then = [("overall", 8, 0.0, 0.75), ("remove", 4, 0.0, 1.0), ("add", 4, 0.0, 0.5)]
    if note:
        then[2] = ("flying", 4, 0.0, 0.5)
    version = ModelVersion(7, "run", {promote.TABLE_TAG: json.dumps(then), promote.CONDITIONS_TAG: key})
    monkeypatch.setattr(promote.registry, "download_version", lambda uri: workspace / "champion")
    result = promote.measure_again(version, workspace)
    assert {task for _, task in edited} == set(measured)
    assert (result.tasks, result.success, result.at_promotion) == (measured, 0.0, 1.0 if note else 0.75)
    assert (result.note, result.has_fallen(0.05)) == (note, not note)
    promote.measure_again(version, workspace)
    assert len(edited) == 2 * len(measured), "a check that reads its last result notices no change of libraries or machine"


@pytest.mark.slow
def test_other_edits_are_other_conditions(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promote.registry, "download_version", lambda uri: workspace / "champion")
    decision = promote.compare_with_champion(workspace / "models", "new", None, workspace)
    assert decision.conditions_key == comparison.read_conditions(workspace).key(workspace)
    table = [(row.name, row.n, row.champion, row.challenger) for row in decision.rows]
    version = ModelVersion(7, "run", {promote.TABLE_TAG: json.dumps(table), promote.CONDITIONS_TAG: decision.conditions_key})
    assert promote.measure_again(version, workspace).has_fallen(0.05)
    (workspace / "params.yaml").write_text(PARAMS.replace("n_edits: 4", "n_edits: 5"))
    result = promote.measure_again(version, workspace)
    assert (result.note, result.at_promotion, result.has_fallen(0.05)) == (promote.CHANGED, 1.0, False)
    assert promote.measure_again(ModelVersion(8, "run"), workspace).at_promotion is None


@pytest.mark.slow
def test_without_a_number_all_edits_that_can_be_judged_are_compared(
    workspace: Path, edited: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class CountedSource:
        def count(self, task: str, split: str) -> EditCounts:
            return EditCounts(9, 3 if task == "remove" else 2)

        def check(self, task: str, split: str, n: int) -> None:
            assert n <= self.count(task, split).usable

        def __call__(self, task: str, split: str, start: int, n: int) -> Benchmark:
            return toy_source(task, split, start, n)

    toy_source = benchmark.load("toyworld/edits/toy_benchmark.py")
    monkeypatch.setattr(benchmark, "load", lambda *_: CountedSource())
    (workspace / "params.yaml").write_text(PARAMS.replace("n_edits: 4", "n_edits: null"))
    conditions = comparison.read_conditions(workspace)
    comparison.check_tasks(conditions, "models:/emuedit-editor/1")
    measured = [
        comparison.measure(workspace / "models", "new", conditions, workspace),
        comparison.measure_nothing(conditions, workspace),
    ]
    for measurement in measured:
        assert {task: len(outcomes) for task, outcomes in measurement.success.items()} == {"remove": 3, "background": 2}
        assert measurement.note.endswith("6 of 9 edits of remove, 7 of 9 edits of background")
