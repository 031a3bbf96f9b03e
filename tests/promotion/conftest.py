import shutil
from pathlib import Path

import pytest

from emuedit.tracking import registry
from tests.databases import copy_database
from tests.flows.conftest import (
    dvc_run,
    home,
    isolated_environment,
    project,
    repository,
    shell,
    store,
    weightless_model,
)

__all__ = [
    "dvc_run", "home", "isolated_environment", "project", "repository", "shell", "store", "weightless_model",
]  # fmt: skip
N_VERSIONS = 8


@pytest.fixture(scope="session")
def store_of_versions(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with versions of the model, none of which has an alias or artifacts."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("versions")
    shutil.copy(empty_store, folder / "draft.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/draft.db")
    client.create_registered_model(registry.MODEL_NAME)
    for number in range(1, N_VERSIONS + 1):
        client.create_model_version(registry.MODEL_NAME, f"nowhere/{number}")
    copy_database(folder / "draft.db", folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def versions(store: str, store_of_versions: Path) -> int:
    """The number of versions of the model in the registry."""
    shutil.copy(store_of_versions, store.removeprefix("sqlite:///"))
    return N_VERSIONS


@pytest.fixture
def readable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version has an editor."""
    (tmp_path / "package/editor").mkdir(parents=True)
    (tmp_path / "package/editor/model_index.json").write_text("{}")
    monkeypatch.setattr(registry, "download_version", lambda uri: tmp_path / "package")
