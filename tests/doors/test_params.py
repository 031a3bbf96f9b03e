# ruff: noqa: E501  one case, one line
"""Doors of `params.yaml`: each line changes the project's file, and says what must be said before any stage runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from emuedit import params_check
from emuedit.config import ParamsError
from flows import retrain
from tests.repository import ROOT

# name -> (text to replace, by what, what must be said)
PARAMS: dict[str, tuple[str, str, str]] = {
    "a typo in a section that runs last": ("n_edits: 32", "n_edit: 32", r"section 'evaluation':\n.*unknown key 'n_edit'; did you mean 'n_edits'"),
    "a typo in a nested key": ("mask_balance: 1.0", "mask_balanse: 1.0", r"unknown key 'loss_weights.mask_balanse'; did you mean"),
    "a section of another name": ("\nevaluation:", "\nevaluate:", r"no stage reads the section 'evaluate'; did you mean 'evaluation'"),
    "a section that is missing": ("\ninversion:", "\n_old:", r"want section 'inversion', got none"),
    "a wrong type": ("n_rows: 2000", "n_rows: '2000'", r"key 'n_rows': .*got '2000' \(str\)"),
    "out of bounds": ("n_edits: 32", "n_edits: 0", r"key 'n_edits': .*greater than or equal to 1"),
    "steps of minus one": ("steps: 4 ", "steps: -1", r"key 'settings.steps'.*greater than or equal to 1"),
    "not a number": ("lr: 0.05 ", "lr: .nan ", r"section 'inversion'.*|key 'lr'"),
    "infinity": ("image_guidance_scale: 1.0 ", "image_guidance_scale: .inf ", r"settings.image_guidance_scale"),
    "1E234 (hydra#2599)": ("llm: toyworld", "llm: 1E234\n  _was: toyworld", r"key 'world.llm'.*|unknown key 'world._was'"),
    "no is false (dvc#8587)": ("on_breach: stop", "on_breach: no", r"key 'on_breach'.*got False \(bool\)"),
    "an octal number": ("n_rows: 2000", "n_rows: 0o17x", r"key 'n_rows'"),
    "a key twice": ("captions:\n  n_rows: 2000", "captions:\n  n_rows: 2000\n  n_rows: 3", r"key 'n_rows' is given twice"),
    "a tab": ("captions:\n  n_rows", "captions:\n\tn_rows", r"params.yaml is not valid YAML"),
    "a merge conflict": ("captions:\n", "<<<<<<< HEAD\ncaptions:\n", r"params.yaml is not valid YAML"),
    "a list in place of a section": ("captions:\n  n_rows: 2000", "captions: [2000]", r"want keys with values, got list"),
    "a date": ("n_rows: 2000", "n_rows: 2024-01-01", r"want only numbers, text, true/false"),
    "an empty section": ("captions:\n  n_rows: 2000", "captions:", r"section 'captions': want keys with values, got NoneType"),
    "an unknown task": ("tasks: [local, texture, background, remove, add, detect, segment, sketch]", "tasks: [locla]",
                        r"instructions.tasks: want one of the tasks .*got 'locla'; did you mean 'local'"),
    "an unknown task that is evaluated": ("sketch, contour]", "sketch, conture]", r"evaluation.tasks: .*did you mean 'contour'"),
    "a task that inversion does not learn": ("sketch, contour]", "sketch, superres]", r"superres is neither a trained task nor the task of"),
    "a task of an inversion that is switched off": ("inversion:\n", "inversion:\n  enabled: false\n", r"contour is neither a trained task nor the task of inversion \(none: inversion.enabled is false\)"),
    "a benchmark that is not there yet": ("toyworld/edits/toy_benchmark.py", "my_edits", r"world.benchmark: want a folder with edits.csv, or a Python file, got none at my_edits"),
    "a hub id that is pinned to a branch": ("toyworld/weights/dino", "owner/name@main", r"world.dino: want .* 'owner/name@<full commit>', got 'owner/name@main'"),
    "a task that nothing trains": ("tasks: [local,", "tasks: [contour, local,", r"contour is learned by inversion only"),
    "an unknown task in filters": ("    texture: {source_object_before: {min: 0.5}", "    textur: {source_object_before: {min: 0.5}", r"did you mean 'texture'"),
    "an unknown preset": ("\ntrain:\n", "\ntrain:\n  preset: sd15\n", r"want one of the presets .*sd15-256"),
    "a model folder with a typo": ("toyworld/weights/dino", "toyworld/weights/dion", r"world.dino: .*did you mean 'toyworld/weights/dino'"),
    "a folder with a typo before it": ("toyworld/weights/t5", "toyworld/wieghts/t5", r"world.t5: .*did you mean 'toyworld/weights/t5'"),
    "an absolute path of another machine": ("toyworld/weights/clip ", "/data/models/clip ", r"world.clip: want an existing file or folder"),
    "a path from the home folder": ("toyworld/weights/depth ", "~/depth ", r"world.depth: want an existing file or folder"),
    "a device of another name": ("\npairs:\n", "\npairs:\n  device: gpu\n", r"section 'pairs':\n.*key 'device': .*want device 'auto'"),
    "neither a path nor a hub id": ("toyworld/weights/detector ", "owlv2 ", r"world.detector: want an existing file or folder, or a hub id"),
    "captions that do not exist": ("toyworld/scenes/caption_grammar.py", "captions.csv", r"world.captions: want an existing file"),
    "captions of another kind": ("toyworld/scenes/caption_grammar.py", "README.md", r"world.captions: want .txt, .csv"),
    "a benchmark folder without its files": ("toyworld/edits/toy_benchmark.py", ".", r"world.benchmark: want a table of edits at .*edits.csv(.|\n)*want the judge's settings in .*judge.yaml"),
    "a Python file without the function": ("toyworld/edits/toy_benchmark.py", "toyworld/edits/rule_llm.py", r"want a function edits in"),
    "an LLM without the model's name": ("toyworld.edits.rule_llm:toy_llm", "https://host/v1", r"want the model's name after '#'"),
    "an LLM's factory with a typo": ("rule_llm:toy_llm", "rule_llm:toy_lm", r"want a function toy_lm in .*did you mean 'toy_llm'"),
    "a module with a typo": ("rule_llm:toy_llm", "rul_llm:toy_llm", r"no toyworld/edits/rul_llm.py; did you mean"),
    "pairs that were not imported": ("mix: {}", "mix: {imported/x: {default: {}}}", r"dataset.mix: want imported pairs .*got none at imported/x"),
    "pairs that are no deps": ("mix: {}", "mix: {imported/x: {default: {}}}", r"imported/x is missing from the deps of train in dvc.yaml"),
    "more captions than rows": ("n_captions: 130", "n_captions: 24000", r"want at most the 2000 rows of captions.n_rows, got 24000"),
    "a size that the base model cannot have": ("\ntrain:\n", "\ntrain:\n  resolution: 70\n", r"train.resolution: want a multiple of 16 px.*use 64"),
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def change(workspace: Path, before: str, after: str) -> None:
    text = (workspace / "params.yaml").read_text()
    assert before in text, f"params.yaml has no {before!r} any more; adapt the case"
    (workspace / "params.yaml").write_text(text.replace(before, after))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", PARAMS)
def test_a_mistake_is_found_before_anything_runs(case: str, workspace: Path) -> None:
    before, after, words = PARAMS[case]
    change(workspace, before, after)
    with pytest.raises(ParamsError) as error:
        params_check.check(workspace)
    assert re.search(words, str(error.value), re.DOTALL), error.value
    assert not (workspace / "scratch").exists()


def test_all_mistakes_are_listed_at_once(workspace: Path) -> None:
    for case in (
        "a typo in a section that runs last",
        "an unknown task",
        "a model folder with a typo",
        "more captions than rows",
    ):
        change(workspace, *PARAMS[case][:2])
    with pytest.raises(ParamsError) as error:
        params_check.check(workspace)
    assert all(word in str(error.value) for word in ("n_edit", "locla", "dion", "24000"))


@pytest.mark.slow
def test_the_files_of_the_project_pass_and_are_not_checked_twice(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params_check.check(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(params_check, "_check_models", lambda *_: pytest.fail("checked twice"))
        params_check.check(workspace)
    change(workspace, "n_edits: 32", "n_edit: 32")
    with pytest.raises(ParamsError, match="n_edit"):
        params_check.check(workspace)


@pytest.mark.slow
def test_a_broken_image_of_the_benchmark_is_found_before_anything_runs(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images are decoded again only after a change of the folder."""
    (workspace / "edits").mkdir()
    Image.effect_noise((64, 64), 50).save(workspace / "edits/a.jpg")
    (workspace / "edits/judge.yaml").write_text("{clip: a/b, dino: c/d}\n")
    header = "image,task,instruction,input_caption,output_caption"
    (workspace / "edits/edits.csv").write_text(f"{header}\na.jpg,local,a,b,c\n")
    change(workspace, "toyworld/edits/toy_benchmark.py", "edits")
    params_check.check(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(params_check, "_check_models", lambda *_: pytest.fail("checked twice"))
        params_check.check(workspace)
    (workspace / "edits/a.jpg").write_bytes((workspace / "edits/a.jpg").read_bytes()[:-200])
    monkeypatch.chdir(workspace)
    assert retrain.main(["--dry-run"]) == 1
    assert "world.benchmark: edits/edits.csv: line 2: edits/a.jpg is damaged" in capsys.readouterr().err
    (workspace / "edits/judge.yaml").write_text("{clip: a/b}\n")
    Image.new("RGB", (64, 64)).save(workspace / "edits/a.jpg")
    with pytest.raises(ParamsError, match=r"world.benchmark: edits/judge.yaml: dino: Field required"):
        params_check.check(workspace)
    for content in (b"{clip: a/b\ndino: [", b"[a/b]", b"", b"{clip: a/b, dino: \xe9}", b"{clip: a/b, dino: 2026-13-01}"):
        (workspace / "edits/judge.yaml").write_bytes(content)
        with pytest.raises(ParamsError, match=r"(?s)world.benchmark: edits/judge.yaml.*; correct it, or delete it"):
            params_check.check(workspace)


def test_a_folder_that_cannot_be_written_is_checked_each_time(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[str] = []
    monkeypatch.setattr(params_check, "_check_models", lambda root, sections: checks.append("") or [])
    (workspace / "scratch").write_text("a file where the folder should be")
    for _ in range(2):
        params_check.check(workspace)
    assert len(checks) == 2
    assert (workspace / "scratch").read_text() == "a file where the folder should be"


def test_other_pipelines_are_left_alone(tmp_path: Path) -> None:
    pipeline = "stages:\n  first:\n    cmd: python make.py\n    params: [first]\n"
    (tmp_path / "params.yaml").write_text("first: {size: 3}\nwhatever: 1\n")
    (tmp_path / "dvc.yaml").write_text(pipeline)
    params_check.check(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]
    (tmp_path / "dvc.yaml").write_text(pipeline.replace("make.py", "-m emuedit.stages.captions"))
    with pytest.raises(ParamsError, match="no stage reads the section 'whatever'"):
        params_check.check(tmp_path)


@pytest.mark.slow
def test_a_dry_run_says_it_too(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workspace)
    change(workspace, "n_edits: 32", "n_edit: 32")
    assert retrain.main(["--dry-run"]) == 1
    output = capsys.readouterr().err
    assert output.startswith("retrain: params.yaml, section 'evaluation':\n")
    assert "unknown key 'n_edit'" in output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_stage_of_dvc_repro_says_it_without_torch(workspace: Path) -> None:
    change(workspace, "n_edits: 32", "n_edit: 32")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "emuedit.stages.captions"]
    process = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert "unknown key 'n_edit'" in process.stderr
    assert "Traceback" not in process.stderr
    shutil.copy(ROOT / "params.yaml", workspace)
    params_check.check(workspace)  # in this process, which has torch; the next one finds that it was done
    program = "import sys; from pathlib import Path; from emuedit import params_check; params_check.check(Path()); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], cwd=workspace, env=environment, capture_output=True, text=True)
    assert process.stdout == "False\n"
    assert "checking" not in process.stderr, "the second time costs nothing"
