import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

STAGE = """
import json, os, pathlib, sys
name = sys.argv[1]
pathlib.Path("runs.txt").open("a").write(name + "\\n")
assert not pathlib.Path("scratch", name).exists(), "an interrupted run would be resumed"
params = __import__("yaml").safe_load(open("params.yaml"))
if params[name].get("fail"):
    sys.exit(3)
out = pathlib.Path("data", name)
out.mkdir(parents=True)
counts = {"kept": params[name]["n"], "add.kept": 1}
(out / "summary.json").write_text(json.dumps({"params": {"dtype": params[name].get("dtype")}, "counts": counts}))
print("done", os.environ.get("MLFLOW_TRACKING_URI"))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package and two stages that write their params as counts."""
    code = tmp_path / "checkout"
    (code / "emuedit").mkdir(parents=True)
    (code / "emuedit" / "stage.py").write_text(STAGE)
    stages = {name: {"cmd": f"python emuedit/stage.py {name}", "outs": [f"data/{name}"]} for name in ("captions", "pairs")}
    (code / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (code / "params.yaml").write_text("captions: {n: 7}\npairs: {n: 3}  # comment\n")
    return code


def runs(runner: object) -> list[str]:
    return (runner.workspace / "runs.txt").read_text().split()


def test_a_stage_is_measured_once(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    runner = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    runner.prepare({})
    first = runner.measure("captions", force=False)
    assert first["counts"] == {"kept": 7}
    assert first["seconds"] > 0
    assert first.keys() == {"seconds", "dtype", "counts"}, "CPU seconds would miss the workers of a fork server"
    again = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    again.prepare({})
    assert again.measure("captions", force=False) == first
    assert runs(runner) == ["captions"]
    assert again.measure("captions", force=True)["counts"] == {"kept": 7}
    assert runs(runner) == ["captions", "captions"]


def test_params_are_copied_as_they_are_or_changed_by_name(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    shipped = stage_runs.StageRunner(checkout, tmp_path / "shipped")
    shipped.prepare({})
    assert (shipped.workspace / "params.yaml").read_bytes() == (checkout / "params.yaml").read_bytes()
    changed = stage_runs.StageRunner(checkout, tmp_path / "changed")
    changed.prepare(
        {"captions.n": 2, "captions.unknown": 1, "evaluation.settings.steps": 2} | stage_runs.dtype_changes("float32")
    )
    params = yaml.safe_load((changed.workspace / "params.yaml").read_text())
    assert params == {"captions": {"n": 2}, "pairs": {"n": 3, "dtype": "float32"}}
    assert changed.measure("pairs", force=False)["dtype"] == "float32"


def test_what_an_interrupted_run_left_is_not_resumed(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    runner = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    runner.prepare({})
    latents = runner.workspace / "scratch" / "latents"
    for folder in (runner.workspace / "scratch" / "pairs" / "key", latents / "key"):
        folder.mkdir(parents=True)
    (runner.workspace / "data" / "pairs").mkdir(parents=True)
    assert runner.measure("pairs", force=False)["counts"] == {"kept": 3}
    assert not latents.exists(), "the stage train would not encode the pairs"


def test_the_packages_are_those_of_the_checkout(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    runner = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    runner.prepare({})
    assert (runner.workspace / "emuedit").resolve() == checkout / "emuedit"


def test_a_stage_that_fails_is_not_measured(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    (checkout / "params.yaml").write_text("pairs: {n: 3, fail: true}\n")
    runner = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    runner.prepare({})
    with pytest.raises(SystemExit, match=r"stage pairs .* failed with exit status 3"):
        runner.measure("pairs", force=False)
    assert not (runner.workspace / "measured.json").exists()


def test_a_workspace_keeps_its_params(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    runner = stage_runs.StageRunner(checkout, tmp_path / "workspace")
    runner.prepare({})
    runner.measure("captions", force=False)
    with pytest.raises(SystemExit, match="measured with other params"):
        runner.prepare({"captions.n": 8})


def test_a_folder_that_is_no_checkout_is_refused(stage_runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="want a checkout of the project"):
        stage_runs.StageRunner(tmp_path, tmp_path / "workspace").prepare({})


def test_a_workspace_measures_one_checkout(stage_runs: ModuleType, checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkout, other)
    stage_runs.StageRunner(checkout, tmp_path / "workspace").prepare({})
    runner = stage_runs.StageRunner(other, tmp_path / "workspace")
    runner.prepare({})
    assert (runner.workspace / "emuedit").resolve() == other / "emuedit", "nothing was measured yet"
    runner.measure("captions", force=False)
    with pytest.raises(SystemExit, match=r"measured with the code .*other/emuedit; name another --workspace"):
        stage_runs.StageRunner(checkout, tmp_path / "workspace").prepare({})
