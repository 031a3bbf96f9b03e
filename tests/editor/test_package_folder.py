import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from emuedit import EditError, Editor, EditSettings
from emuedit.data.file_manifest import write_manifest
from emuedit.editor import sampling, task_pack
from emuedit.editor.package_folder import PackageError, find_package, read_settings, resolve_source
from emuedit.editor.package_layout import find_packs
from emuedit.editor.settings import SettingsError
from emuedit.editor.task_pack import TaskPack
from emuedit.predictor import task_predictor

T5 = Path(__file__).parents[2] / "toyworld" / "weights" / "t5"
SETTINGS = EditSettings(steps=2, image_guidance_scale=1.0, guidance_scale=1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)


@pytest.fixture
def folder(editor_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A package that holds an editor and nothing else."""
    shutil.copytree(editor_folder("toy"), tmp_path / "editor")
    return tmp_path


@pytest.mark.slow
def test_a_package_is_loaded_with_its_task_predictor_packs_and_settings(folder: Path) -> None:
    sampler = sampling.load(folder / "editor")
    task_pack.save(TaskPack("contour", torch.arange(6) / 7, sampler.fingerprint, 8, {}), folder / "inversion/contour.safetensors")
    task_predictor.from_t5(str(T5), ["local", "remove"], 16).save(folder / "router")
    (folder / "settings.json").write_text(json.dumps({"steps": 3, "guidance_scale": 2.0}))
    editor = Editor.load(folder, "cpu", "float32")
    assert editor.tasks == (*sampler.tasks, "contour")
    assert editor.sampler.fingerprint == sampler.fingerprint
    assert editor.predictor is not None
    assert editor.predictor.tasks == ("local", "remove")
    assert editor.settings == EditSettings(steps=3, guidance_scale=2.0)
    assert editor.edit(PIXELS, "draw the outline", "contour").shape == PIXELS.shape
    assert editor.choose_tasks(["make it red"])[0].task in ("local", "remove")


@pytest.mark.slow
def test_a_package_needs_no_more_than_an_editor(folder: Path) -> None:
    editor = Editor.load(str(folder), "cpu", "float32")
    assert editor.predictor is None
    assert editor.settings == EditSettings()
    assert editor.edit(PIXELS, "make it red", "local", SETTINGS).shape == (16, 20, 3)
    with pytest.raises(EditError, match=r"want a task predictor .* got none; name the task"):
        editor.edit(PIXELS, "make it red")


def test_given_settings_come_before_those_of_the_package(folder: Path) -> None:
    (folder / "settings.json").write_text(json.dumps({"steps": 3}))
    assert Editor.load(folder, "cpu", "float32", SETTINGS).settings == SETTINGS


def test_a_workspace_has_the_settings_of_its_evaluation(folder: Path) -> None:
    models = folder / "models"
    models.mkdir()
    (folder / "editor").rename(models / "editor")
    (folder / "params.yaml").write_text("evaluation: {n_edits: 4, settings: {steps: 9, guidance_scale: 2.5}}\n")
    assert read_settings(models) == EditSettings(steps=9, guidance_scale=2.5)
    (models / "settings.json").write_text(json.dumps({"steps": 3}))
    assert read_settings(models) == EditSettings(steps=3)


@pytest.mark.slow
def test_wrong_settings_in_a_package_are_an_error(folder: Path) -> None:
    (folder / "settings.json").write_text(json.dumps({"s_T": 3.0}))
    with pytest.raises(SettingsError, match="got 's_T'; it is now 'guidance_scale'"):
        Editor.load(folder, "cpu", "float32")


def test_the_package_around_an_editor_folder_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_package(folder) == find_package(folder / "editor") == tmp_path
    monkeypatch.chdir(folder / "editor")
    assert find_package(".") == tmp_path


@pytest.mark.slow
def test_an_editor_folder_that_lies_in_no_package_is_opened_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "editor").rename(tmp_path / "published")
    assert find_package(tmp_path / "published") == tmp_path / "published"
    editor = Editor.load(tmp_path / "published", "cpu", "float32")
    assert editor.predictor is None
    assert editor.edit(PIXELS, "make it red", "local", SETTINGS).shape == PIXELS.shape
    (tmp_path / "published/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(PackageError, match=r"want a folder with editor/model_index\.json"):
        Editor.load(tmp_path / "published")


def test_a_missing_folder_and_one_without_an_editor_are_errors(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    with pytest.raises(PackageError, match=r"want a folder with editor/model_index\.json, got .*odd with \[\]; run"):
        Editor.load(tmp_path / "odd")
    (tmp_path / "odd/notes.txt").touch()
    with pytest.raises(PackageError, match=r"odd with \['notes.txt'\]"):
        Editor.load(tmp_path / "odd")
    with pytest.raises(PackageError, match=r"got .*nowhere with nothing; run"):
        Editor.load(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_downloaded_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PackageError, match=r"got 'owner/editor': no such folder, and the hub request failed \(\w+Error\)"):
        Editor.load("owner/editor")


@pytest.mark.slow
def test_a_hub_id_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, list[str]]] = []

    def download(name: str, allow_patterns: list[str], **_: object) -> str:
        requests.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    editor = Editor.load("owner/editor", "cpu", "float32")
    ((name, patterns),) = requests
    assert name == "owner/editor"
    assert len(editor.tasks) == 16
    of_package = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    of_package += ["manifest.json", "router/ngrams.safetensors", "router/spiece.model", "router/out_of_fold.parquet"]
    of_package += ["inversion/contour.safetensors", "editor/metrics.jsonl", "editor/sheet.png"]
    of_package += ["editor/README.md", "editor/replay/pairs/shard-00000.parquet", "editor/tokenizer/merges.txt"]
    others = ["data/train.parquet", "editor/unet/diffusion_pytorch_model.bin", "editor/setup.py", "model.ckpt", "video.mp4"]
    assert list(filter_repo_objects([*of_package, *others], allow_patterns=patterns)) == of_package


def test_a_source_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(PackageError, match=r"want a folder, models:/..., runs:/... or a hub id 'owner/name'; got 's3://a/b'"):
        resolve_source("s3://a/b")


@pytest.mark.slow
def test_by_default_the_champion_is_opened_or_else_the_folder_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emuedit.tracking import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(PackageError, match=r"no champion is registered and there is no models/editor here; run `uv run retrain`"):
        resolve_source(None)
    (tmp_path / "models/editor").mkdir(parents=True)
    assert resolve_source(None) == (Path("models"), "models/editor")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"], "no tracking store is made"
    Path("mlflow.db").touch()
    monkeypatch.setattr(registry, "download_version", lambda uri: tmp_path / uri.split("@")[1])
    monkeypatch.setattr(registry, "version_at", lambda alias: None)
    assert resolve_source(None) == (Path("models"), "models/editor")
    version = SimpleNamespace(uri="models:/emuedit-editor@champion")
    monkeypatch.setattr(registry, "version_at", lambda alias: version)
    assert resolve_source(None) == (tmp_path / "champion", "models:/emuedit-editor@champion")
    challenger = "models:/emuedit-editor@challenger"
    assert resolve_source(challenger) == (tmp_path / "challenger", challenger)


@pytest.mark.slow
def test_a_registered_model_is_loaded_from_the_tracking_store(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    """With a real store of MLflow: by alias, by number, and as the champion that is opened by default."""
    from mlflow.tracking import MlflowClient

    from emuedit.tracking.registry import MODEL_NAME, RegistryError
    from emuedit.tracking.signed_files import MANIFEST_TAG

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (folder / "settings.json").write_text(json.dumps({"steps": 3}))
    model = tmp_path / "model/artifacts"
    model.mkdir(parents=True)
    for name in ("editor", "settings.json"):
        (folder / name).rename(model / name)
    write_manifest(model)
    tags = {MANIFEST_TAG: write_manifest(model.parent)}
    client = MlflowClient(tracking_uri=store)
    client.create_registered_model(MODEL_NAME)
    run = client.create_run("0")
    client.create_model_version(MODEL_NAME, str(model.parent), run.info.run_id, tags)
    client.set_registered_model_alias(MODEL_NAME, "champion", "1")
    for source in (f"models:/{MODEL_NAME}@champion", f"models:/{MODEL_NAME}/1", None):
        editor = Editor.load(source, "cpu", "float32")
        assert editor.settings == EditSettings(steps=3)
    assert editor.edit(PIXELS, "make it red", "local", SETTINGS).shape == (16, 20, 3)
    with pytest.raises(RegistryError, match=rf"has no models:/{MODEL_NAME}/2"):
        Editor.load(f"models:/{MODEL_NAME}/2")


def test_a_pack_that_was_being_written_is_none(tmp_path: Path) -> None:
    for name in ("contour.safetensors", ".cutout.part.safetensors", "contour.md"):
        (tmp_path / name).touch()
    assert [file.name for file in find_packs(tmp_path)] == ["contour.safetensors"]
