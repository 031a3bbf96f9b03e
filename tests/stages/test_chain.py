"""The pipeline as a whole, as small as possible: every stage of dvc.yaml in its order, a few captions, a few steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import EvalRecord, Instruction, Pair, Verdict
from emuedit.editing.api import Editor
from emuedit.editor import sampling
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors
from emuedit.tracking import registry
from tests.stages.workspace import ROOT, Workspace, hide_mlflow, read_files, skip_estimates

SMALL: dict[str, dict[str, Any]] = {
    "captions": {"n_rows": 24, "rows_per_shard": 12},
    "instructions": {"n_captions": 4, "captions_per_shard": 2},
    "pairs": {"steps": 3, "workers": {"kind": "local", "processes": 1}},
    "dataset": {"sheet_pairs": 1},
    "validation": {"reference": None, "on_breach": "warn", "sample_pairs": 8},
    "router": {"epochs": 1, "folds": 2, "non_instruction_repeats": 1},
    "train": {"steps": 4, "batch_size": 4, "processes": 1, "warmup_steps": 1, "eval_every_steps": 4, "held_out_share": 0.0},
    "inversion": {"steps": 3, "n_examples": 4, "n_held_out": 2, "batch_size": 2, "eval_every_steps": 3},
    "evaluation": {"n_edits": 2, "settings": {"steps": 2}, "sheet_columns": 2},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A folder in which every stage ran once."""
    workspace = Workspace(tmp_path_factory.mktemp("chain"), SMALL)
    with pytest.MonkeyPatch.context() as patch:
        hide_mlflow(patch, tmp_path_factory.mktemp("no-mlflow"))
        skip_estimates(patch)
        for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
            workspace.run(stage)
    return workspace


def test_every_record_leads_back_to_its_caption(workspace: Workspace) -> None:
    data = workspace.folder / "data"
    instructions = {instruction.id: instruction for instruction in read_folder(data / "instructions", Instruction)}
    pairs = {pair.id: pair for pair in read_folder(data / "pairs", Pair, verify=True)}
    assert pairs
    for pair in pairs.values():
        origin = instructions[pair.instruction_id]
        assert (pair.task, pair.instruction, pair.parent_ids) == (origin.task, origin.text, (origin.id, origin.caption_id))
        assert decode_png(pair.source).shape == decode_png(pair.target).shape == (64, 64, 3)
    verdicts = list(read_folder(data / "dataset", Verdict))
    assert {verdict.pair_id for verdict in verdicts} == set(pairs)


def test_the_trained_editor_edits_a_picture(workspace: Workspace) -> None:
    editor = sampling.load(workspace.folder / "models/editor")
    record = next(read_folder(workspace.folder / "reports/evaluation", EvalRecord))
    image = image_tensors.from_uint8(decode_png(record.source))
    settings = EditSettings(steps=2, image_guidance_scale=1.3, guidance_scale=3.0)
    edited = editor.sample(image, [record.instruction], [record.task], settings).images
    assert edited.shape == image.shape
    assert not edited.equal(image)


def test_the_published_models_are_a_package_that_the_python_api_loads(workspace: Workspace) -> None:
    record = next(read_folder(workspace.folder / "reports/evaluation", EvalRecord))
    picture = decode_png(record.source)
    editor = Editor.load(workspace.folder / "models")
    assert editor.predictor is not None
    assert editor.predictor.new_tasks == editor.sampler.inverted_tasks == ("contour",)
    edited = editor.edit(picture, record.instruction, record.task, EditSettings(steps=2))
    assert edited.shape == picture.shape
    assert (edited != picture).any()


def test_the_report_has_every_metric_for_every_system_and_task(workspace: Workspace) -> None:
    tables = json.loads((workspace.folder / "reports/evaluation/metrics.json").read_text())
    params = yaml.safe_load((workspace.folder / "params.yaml").read_text())["evaluation"]
    for metric in ("edit_success", "clip_dir", "clip_im", "clip_out", "l1", "dino"):
        assert set(tables[metric]) == {"identity", "emuedit"}
        for row in tables[metric].values():
            assert list(row) == ["overall", *params["tasks"]]
    assert tables["edit_success"]["identity"]["overall"] == 0.0
    assert tables["l1"]["identity"]["overall"] == 0.0


def test_a_second_run_in_another_folder_gives_the_same_data(workspace: Workspace, tmp_path: Path) -> None:
    """Whatever precedes the training can therefore be compared by hash."""
    second = Workspace(tmp_path, SMALL)
    shutil.copytree(workspace.folder / "data/captions", tmp_path / "data/captions")
    shutil.copytree(workspace.folder / "models/router", tmp_path / "models/router")
    second.run("instructions")
    second.run("pairs")
    second.run("dataset")
    for name in ("instructions", "pairs", "dataset"):
        first_files, second_files = (read_files(folder / "data" / name) for folder in (workspace.folder, tmp_path))
        assert list(first_files) == list(second_files)
        for file, content in first_files.items():
            assert second_files[file] == content, f"{name}/{file}"


def test_every_model_that_a_stage_publishes_can_be_registered_and_served(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    """As `retrain` registers them: MLflow lets the model answer its example before it becomes a version."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("registration")
    models = workspace.folder / "models"
    parts = {folder.name: folder for folder in models.iterdir()}
    assert sorted(parts) == ["editor", "inversion", "router"]
    with mlflow.start_run() as run:
        pass
    settings = EditSettings(steps=2).model_dump()
    version = registry.register_version(run.info.run_id, parts, ROOT / "flows/pyfunc_model.py", settings, {})
    assert Editor.load(registry.download_version(version.uri)).settings.steps == 2
