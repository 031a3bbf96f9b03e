"""What a version was made from, and whether it can be made again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from emuedit import cli
from emuedit.dvc_lock import LockFileError
from emuedit.promotion import lineage
from emuedit.tracking import alias_moves, registry, runs
from emuedit.tracking.registry import ModelVersion, RegistryError
from flows import dvc_graph, release
from flows.retrain_options import RetrainOptions

LOCK = """
stages:
  captions:
    cmd: python -m emuedit.stages.captions
    deps: [{path: emuedit/data, md5: c0de.dir}, {path: book.txt, md5: b00c}]
    params: {params.yaml: {captions: {n_rows: 5}}}
    outs: [{path: data/captions, md5: cccc.dir}]
  train:
    cmd: python -m emuedit.stages.train
    deps: [{path: data/captions, md5: cccc.dir}, {path: toyworld/weights/base_model, md5: ba5e.dir}]
    outs: [{path: models/editor, md5: eeee.dir}]
  router:
    cmd: python -m emuedit.stages.router
    deps: [{path: data/captions, md5: cccc.dir}]
    outs: [{path: models/router, md5: aaaa.dir}]
"""


@pytest.fixture
def origins() -> list[lineage.Origin]:
    return lineage.read_origins(yaml.safe_load(LOCK)["stages"], ["models/editor", "models/router"])


VERSION = ModelVersion(4, "run4", {"git.commit": "abcd", "git.dirty": "false", "gate.state": "promoted"})


def test_the_chain_leads_back_to_the_captions_and_the_base_model(origins: list[lineage.Origin]) -> None:
    editor, router = origins
    assert list(editor.stages()) == ["train", "captions"]
    captions, base_model = editor.inputs
    assert (captions.md5, captions.params) == ("cccc.dir", {"captions": {"n_rows": 5}})
    assert (base_model.path, base_model.stage) == ("toyworld/weights/base_model", "")
    assert router.inputs[0] is captions


def test_the_text_names_every_input_once(origins: list[lineage.Origin]) -> None:
    lines = lineage.format_text(VERSION, origins).splitlines()
    assert lines[0] == "models:/emuedit-editor/4  promoted"
    assert "  commit   abcd (clean)" in lines
    assert "  models/editor  eeee.dir  by train" in lines
    assert "    data/captions  cccc.dir  by captions" in lines
    assert "    data/captions  cccc.dir  by captions, as above" in lines
    assert "      book.txt  b00c  an input" in lines
    assert not any(line.strip().startswith("emuedit/data") for line in lines), "code is counted, not listed"


def test_the_picture_connects_data_stages_and_the_version(origins: list[lineage.Origin]) -> None:
    picture = lineage.format_mermaid(VERSION, origins)
    assert 'ndata_captions_stage["captions"] --> ndata_captions' in picture
    assert "ndata_captions --> nmodels_editor_stage" in picture
    assert "nmodels_editor --> version" in picture
    assert picture.count('ndata_captions("data/captions') == 1


def test_json_holds_all_of_it(origins: list[lineage.Origin]) -> None:
    values = json.loads(lineage.format_json(VERSION, origins))
    assert values["version"] == 4
    assert values["origins"][0]["inputs"][0]["params"] == {"captions": {"n_rows": 5}}


def test_a_path_that_no_stage_makes_is_an_error() -> None:
    with pytest.raises(RegistryError, match=r"want models/none among the outputs of dvc.lock, got data/captions, models/editor"):
        lineage.read_origins(yaml.safe_load(LOCK)["stages"], ["models/none"])


def test_a_damaged_lock_file_of_a_version_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "read_text", lambda run_id, path: "stages: [1]\n")
    with pytest.raises(LockFileError, match=r"got a damaged one: that of version 4; restore the store, or register it again"):
        lineage.of_version(VERSION)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_version_is_listed_explained_and_made_again(
    project: Path,
    store: str,
    weightless_model: None,
    dvc_run: Callable[..., None],
    shell: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = project / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("report: true}", "report: true, reproducible: false}"))
    dvc_run("repro", "-q")
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "a pipeline and its results", cwd=project)
    release.finish(dvc_graph.read(project), release.start(project), {}, RetrainOptions())
    capsys.readouterr()

    assert cli.main(["models"]) == 0
    output = capsys.readouterr().out
    assert "      1  champion " in output
    assert "promoted: edit success 0.500 against 0.100 of the identity baseline" in output
    assert cli.main(["models", "--moves"]) == 0
    assert "promotion" in capsys.readouterr().out
    assert cli.main(["lineage", "1"]) == 0
    output = capsys.readouterr().out
    assert "models/editor" in output
    assert "by network" in output
    assert "by first" in output

    assert cli.main(["rebuild", "1"]) == 0
    output = capsys.readouterr().out
    assert "version 1: 6 of 6 outputs are identical" in output, "reports are not compared"
    assert shell("git", "worktree", "list", cwd=project).count("\n") == 1

    assert cli.main(["promote", "1"]) == 0
    assert "it is the champion already" in capsys.readouterr().out
    assert cli.main(["promote", "9"]) == 2
    assert "want a version of emuedit-editor, got 9" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worse_version_is_refused_unless_a_person_forces_it(
    project: Path, store: str, weightless_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in ("0.6", "0.4"):
        folder = project / "models/editor"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text("{}")
        (folder / "weights.safetensors").write_text(share)
        run_id = release.start(project)
        registry.register_version(run_id, {"editor": folder}, release.MODEL_FILE, {"steps": 2}, {})
    assert cli.main(["promote", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["promote", "2"]) == 1
    output = capsys.readouterr().out
    assert "overall          100     0.600       0.400      -0.200" in output
    assert "version 2: refused: edit success 0.400 against 0.600 of models:/emuedit-editor/1" in output
    assert cli.main(["promote", "2", "--force", "the customer wants it"]) == 0
    assert "forced: the customer wants it; the gate: edit success 0.400" in capsys.readouterr().out
    move = alias_moves.history()[-1]
    assert (move.is_forced, move.champion, move.before) == (True, 2, 1)
    assert cli.main(["rollback"]) == 0
    assert capsys.readouterr().out == "champion: version 1; previous: version 2\n"
