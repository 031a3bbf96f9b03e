import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emuedit.config import ParamsError, load
from emuedit.data.image_io import Pixels
from emuedit.data.publish import read_folder
from emuedit.data.records import EvalRecord
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, report
from emuedit.metrics.benchmark import Benchmark
from emuedit.metrics.edit_scores import evaluate_system
from emuedit.metrics.systems import Systems
from emuedit.models import clip, dino
from emuedit.runtime import Runtime
from emuedit.stages import MEMORY_ENV, evaluation
from emuedit.stages.evaluation import EvaluationParams
from emuedit.stages.inversion import InversionParams
from emuedit.tasks import HELD_OUT, TASKS, get_task
from tests.stages.workspace import ROOT, load_params, read_files, toy_world

Scorers = tuple[clip.ClipScorer, dino.DinoScorer]


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    world = toy_world()
    return clip.load(world["clip"]), dino.load(world["dino"])


def load_edits(task: str, n: int = 6) -> Benchmark:
    return benchmark.load("toyworld/edits/toy_benchmark.py")(task, "held_out", 0, n)


def return_input(edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
    return edits.before, [edits.task] * len(seeds)


def return_exact_result(edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
    return edits.exact, ["local"] * len(seeds)


@pytest.mark.slow
def test_a_system_that_does_nothing_keeps_the_picture_and_has_no_direction(scorers: Scorers) -> None:
    records = evaluate_system("identity", return_input, load_edits("remove"), scorers, 0)
    tables = report.summarise(records, ("remove",))
    assert [tables[name]["identity"]["remove"] for name in ("edit_success", "l1", "clip_im", "dino")] == [0.0, 0.0, 1.0, 1.0]
    assert tables["clip_dir"]["identity"]["remove"] is None
    assert tables["undefined_clip_dir_unchanged_image"]["identity"]["remove"] == len(records)
    assert "undefined_clip_dir_equal_captions" not in tables


@pytest.mark.slow
def test_the_exact_result_succeeds_and_moves_towards_its_caption(scorers: Scorers) -> None:
    records = evaluate_system("exact", return_exact_result, load_edits("background"), scorers, 0)
    assert all(record.success and not record.reason for record in records)
    tables = report.summarise(records, ("background",))
    direction, distance = (tables[name]["exact"]["background"] for name in ("clip_dir", "l1"))
    assert direction is not None
    assert distance is not None
    assert direction > 0.3
    assert tables["router"]["exact"]["background"] == 0.0, "the system used the task 'local'"
    assert 0 < distance < 0.5


def make_params(**changes: Any) -> EvaluationParams:
    small = {"systems": ("identity", "true_task"), "tasks": ("remove", "detect"), "n_edits": 3, "sheet_columns": 2}
    return load_params(EvaluationParams, "evaluation", **small | {"dtype": "float32", "device": "cpu"} | changes)


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_after_the_last_task_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated_tasks: list[str] = []

    class InterruptedSystems(Systems):
        def true_task(self, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
            evaluated_tasks.append(edits.task)
            if evaluated_tasks == ["remove", "detect"]:
                raise KeyboardInterrupt
            return return_exact_result(edits, seeds)

    monkeypatch.setattr(evaluation, "Systems", InterruptedSystems)
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(make_params(), tmp_path)
    assert not (tmp_path / evaluation.OUT).exists()
    summary = evaluation.run(make_params(), tmp_path)
    assert evaluated_tasks == ["remove", "detect", "detect"]
    assert summary.counts == {
        "identity_remove": 0, "identity_detect": 0, "true_task_remove": 3, "true_task_detect": 3, "edits": 12,
    }  # fmt: skip
    out = tmp_path / evaluation.OUT
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() > {"edit_success_new_words", "edit_success_without_new_words"}, "the slices of params.yaml"
    assert "note" not in metrics
    table = metrics["edit_success"]
    assert table == {
        "identity": {"overall": 0.0, "remove": 0.0, "detect": 0.0},
        "true_task": {"overall": 1.0, "remove": 1.0, "detect": 1.0},
    }
    assert len(list(read_folder(out, EvalRecord, verify=True))) == 12
    assert ["overall", "0.00", "1.00"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (out / "contact_sheet.png").stat().st_size > 5000
    evaluation.run(make_params(), tmp_path / "uninterrupted")
    assert read_files(out) == read_files(tmp_path / "uninterrupted" / evaluation.OUT)


@pytest.mark.slow
def test_only_images_of_the_sheet_are_in_memory_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark may have hundreds of edits per task, and three images for each, of every system."""
    draw, kept = report.draw_contact_sheet, list[tuple[str, str, int]]()

    def count(records: list[EvalRecord], *arguments: Any) -> Any:
        kept.extend((record.system, record.task, sum(bool(png) for png in (record.source, record.output))) for record in records)
        return draw(records, *arguments)

    monkeypatch.setattr(report, "draw_contact_sheet", count)
    evaluation.run(make_params(systems=("identity",), tasks=("remove", "add"), n_edits=3, sheet_columns=2), tmp_path)
    assert kept == [("identity", task, n) for task in ("remove", "add") for n in (2, 2, 0)]
    assert all(record.output for record in read_folder(tmp_path / evaluation.OUT, EvalRecord)), "all are on the disk"


@pytest.mark.slow
def test_the_metrics_name_an_uncalibrated_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UncalibratedSource:
        uncalibrated_tasks = ("add", "remove")

        def __call__(self, task: str, split: str, start: int, n: int) -> Benchmark:
            return source(task, split, start, n)

    source = benchmark.load("toyworld/edits/toy_benchmark.py")
    monkeypatch.setattr(benchmark, "load", lambda reference, device: UncalibratedSource())
    evaluation.run(make_params(systems=("identity",), tasks=("remove",), n_edits=2), tmp_path)
    metrics = json.loads((tmp_path / evaluation.OUT / "metrics.json").read_text())
    assert metrics["note"] == "uncalibrated judge: remove"
    assert metrics["refused"] == {"identity": {"overall": 0.0, "remove": 0.0}}


@pytest.mark.slow
def test_an_evaluation_that_ran_out_of_memory_makes_a_few_edits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ExactSystems(Systems):
        def true_task(self, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
            divisors.append(self.divisor)
            return return_exact_result(edits, seeds)

    divisors: list[int] = []
    monkeypatch.setattr(evaluation, "Systems", ExactSystems)
    params = make_params(systems=("true_task",), tasks=("remove",), n_edits=5)
    first = evaluation.run(params, tmp_path).counts
    monkeypatch.setenv(MEMORY_ENV, "1")
    assert evaluation.run(params, tmp_path).counts == first
    assert divisors == [1, 2]
    assert "evaluation: ran out of memory; retrying with at most 4 edits per batch" in capsys.readouterr().out


def test_unknown_systems_and_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="want systems from identity, emuedit, true_task; got 'magic'"):
        Systems(tmp_path, EditSettings(), Runtime("cpu", "float32"))["magic"]
    with pytest.raises(ValueError, match=r"want one of the tasks .*; got 'fly'"):
        evaluation.run(make_params(tasks=("fly",)), tmp_path)


@pytest.mark.slow
def test_seeds_depend_on_the_edit_and_not_on_the_system(scorers: Scorers) -> None:
    first, second = (evaluate_system(name, return_input, load_edits("add", 2), scorers, 3) for name in ("a", "b"))
    assert [record.seed for record in first] == [record.seed for record in second]
    assert len({record.seed for record in first}) == 2
    assert replace(first[0], system="b").id == second[0].id
    other = evaluate_system("a", return_input, load_edits("add", 2), scorers, 4)
    assert {record.seed for record in other}.isdisjoint(record.seed for record in first)


@pytest.mark.slow
def test_the_default_params_name_systems_tasks_and_a_benchmark_that_exist(tmp_path: Path) -> None:
    params = load(EvaluationParams, "evaluation", ROOT / "params.yaml")
    systems = Systems(tmp_path, params.settings, Runtime("cpu", "float32"))
    for name in params.systems:
        assert callable(systems[name])
    load_benchmark_edits = benchmark.load(params.world.benchmark)
    for task in params.tasks:
        edits = load_benchmark_edits(task, params.split, 0, 2)
        assert edits.task == task
        assert len(edits.instructions) == 2
        assert edits.judge(edits.exact).success.all(), f"the judge refuses the exact results of {task}"
    assert any(get_task(task) in TASKS for task in params.tasks)
    inverted = load(InversionParams, "inversion", ROOT / "params.yaml").task
    assert {task for task in params.tasks if get_task(task) in HELD_OUT} <= {inverted}, "nothing learns the other tasks"


@pytest.mark.slow
def test_the_contact_sheet_frames_right_outputs_green_and_wrong_ones_red(scorers: Scorers) -> None:
    records = evaluate_system("true_task", return_exact_result, load_edits("remove", 3), scorers, 0)
    records += evaluate_system("true_task", return_input, load_edits("detect", 3), scorers, 0)
    tasks = ("remove", "detect")
    success = report.summarise(records, tasks)["edit_success"]
    sheet = np.asarray(report.draw_contact_sheet(records, "true_task", tasks, 2, success))
    assert sheet.shape[0] > 3 * 128
    green, red = (38, 152, 84), (206, 56, 48)
    assert (sheet == green).all(-1).any()
    assert (sheet == red).all(-1).any()
