"""Options of `retrain` and of its flow that are refused before anything runs."""

import inspect
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from emuedit.config import ParamsError
from flows import dvc_graph, gate_stage, retrain
from flows.retrain_options import RetrainOptions


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not refused finds no pipeline here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("count", ["0", "-1", "two", ""])
def test_stages_side_by_side_are_counted_from_one(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        retrain.main(["--max-parallel", count])
    assert end.value.code == 2
    assert f"--max-parallel: want a number of stages of at least 1, got {count!r}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, -3])
def test_the_flow_refuses_no_stage_at_a_time(count: int) -> None:
    from flows import pipeline

    with pytest.raises(ParamsError, match=f"want max_parallel of at least 1, got {count}; 1 runs"):
        pipeline.retrain.fn(max_parallel=count)


def test_the_parameters_of_the_flow_are_the_options_of_the_command() -> None:
    from flows import pipeline

    parameters = inspect.signature(pipeline.retrain.fn).parameters
    assert asdict(RetrainOptions()) == {name: parameter.default for name, parameter in parameters.items()}


PIPELINE = "stages: {scores: {cmd: echo, outs: [reports], meta: {gate: emuedit}}}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("scores: {n_edits: 15}\n", r"want scores.n_edits of at least promotion.min_edits, 16, got 15; .*--no-register"),
        ("scores: {n_edits: 16}\npromotion: {min_edits: 17}\n", "of at least promotion.min_edits, 17, got 16"),
        ("", "want one stage with `meta: {gate: <system>}` in dvc.yaml, got none"),
    ],
)
@pytest.mark.usefixtures("isolated_environment")
def test_what_would_keep_the_gate_from_deciding_is_found_before_the_first_stage(
    params: str, words: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    (tmp_path / "params.yaml").write_text(params or "scores: {n_edits: 16}\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE if params else PIPELINE.replace("gate", "report"))
    assert retrain.main([]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.glob("mlflow*"))
    assert retrain.main(["--dry-run", "--no-register"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("isolated_environment")
def test_all_usable_edits_of_a_task_may_be_too_few_for_the_gate(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    rows = ["a.png,local,do it,a cat,a dog"] * 3 + ["a.png,add,do it,a cat,a dog"] * 2 + ["a.png,add,do it,a cat,a cat"]
    (folder / "edits.csv").write_text("\n".join(["image,task,instruction,input_caption,output_caption", *rows, ""]))
    (folder / "judge.yaml").write_text("{clip: not/opened, dino: not/opened}\n")
    params = "world: {benchmark: photos}\nscores: {tasks: [local, add], n_edits: null}\npromotion: {min_edits: 3}\n"
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    with pytest.raises(ParamsError, match=r"at least promotion.min_edits, 3, usable .*got \{'add': 2\}; add rows to edits.csv, "):
        gate_stage.check(dvc_graph.read(tmp_path))
    (tmp_path / "params.yaml").write_text(params.replace("min_edits: 3", "min_edits: 2"))
    gate_stage.check(dvc_graph.read(tmp_path))


def test_as_many_edits_as_a_decision_may_rest_on_are_enough(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    (tmp_path / "params.yaml").write_text("scores: {n_edits: 16}\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    assert retrain.main(["--dry-run"]) == 0
