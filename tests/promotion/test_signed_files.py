"""A registered version is opened only if all its files, with those that are executed, are the registered ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.data.file_manifest import MANIFEST_FILE, ManifestError, write_manifest
from emuedit.tracking import mlflow_client, registry, signed_files
from emuedit.tracking.registry import ModelVersion
from flows import release

Change = Callable[[Path], object]


@pytest.fixture
def version(project: Path, store: str, weightless_model: None) -> ModelVersion:
    folder = project / "models/editor"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return registry.register_version(release.start(project), {"editor": folder}, release.MODEL_FILE, {"steps": 2}, {})


def stored_files(version: ModelVersion) -> Path:
    """Folder of a version in the artifact store."""
    source = mlflow_client.client().get_model_version_download_uri(registry.MODEL_NAME, str(version.number))
    return Path(source.removeprefix("file://"))


def forget(downloaded: Path) -> None:
    """Delete a model from the cache of the user."""
    shutil.rmtree(downloaded)


@pytest.mark.slow
def test_files_and_code_of_a_version_are_checked_against_the_registry(version: ModelVersion, tmp_path: Path) -> None:
    forget(registry.download_model(version.uri))
    files = stored_files(version)
    listed = (files / MANIFEST_FILE).read_text()
    for name in (
        "MLmodel",
        "weightless_model.py",
        "code/emuedit/editing/api.py",
        "artifacts/manifest.json",
        "requirements.txt",
    ):
        assert f'"{name}"' in listed
    backup = shutil.copytree(files, tmp_path / "backup")
    changes: dict[str, Change] = {
        "MLmodel has changed": lambda model: (model / "MLmodel").write_text("flavors: {}"),
        "weightless_model.py has changed": lambda model: (model / "weightless_model.py").write_text("import os"),
        "code/emuedit/config.py has changed": lambda model: (model / "code/emuedit/config.py").write_text("import os"),
        "code/emuedit/os.py is not listed": lambda model: (model / "code/emuedit/os.py").write_text(""),
        "artifacts/settings.json is missing": lambda model: (model / "artifacts/settings.json").unlink(),
        "want manifest.json": lambda model: (model / MANIFEST_FILE).unlink(),
        "got one with another hash": lambda model: ((model / "MLmodel").write_text("flavors: {}"), write_manifest(model)),
    }
    for message, change in changes.items():
        change(files)
        with pytest.raises(ManifestError, match=message):
            registry.download_version(version.uri)
        if "manifest" not in message and "hash" not in message:
            with pytest.raises(ManifestError, match=message):
                registry.download_version(f"runs:/{version.run_id}/{registry.MODEL_NAME}")
        with pytest.raises(ManifestError, match=message):
            registry.download_model(version.uri)
        shutil.rmtree(files)
        shutil.copytree(backup, files)
    model = registry.download_model(version.uri)
    assert (model / "code/emuedit/editing/api.py").is_file()
    shutil.rmtree(files)  # nothing is downloaded twice
    assert registry.download_model(version.uri) == model
    assert registry.download_version(version.uri) == model / "artifacts"
    forget(model)
    shutil.copytree(backup, files)
    mlflow_client.client().delete_model_version_tag(registry.MODEL_NAME, str(version.number), signed_files.MANIFEST_TAG)
    message = r"want the tag emuedit.manifest of models:/emuedit-editor/1 .*, got none"
    with pytest.raises(ManifestError, match=message):
        registry.download_version(version.uri)
    (stored_files(version) / MANIFEST_FILE).unlink()
    with pytest.raises(ManifestError, match=message):
        registry.download_version(version.uri)
