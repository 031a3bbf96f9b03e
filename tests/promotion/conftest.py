import pytest

from emuedit.tracking import registry, runs
from tests.flows.conftest import (
    database_of,
    dvc_run,
    empty_store,
    home,
    isolated_environment,
    project,
    repository,
    shell,
    store,
    weightless_model,
)

__all__ = [
    "database_of", "dvc_run", "empty_store", "home", "isolated_environment", "project", "repository", "shell", "store",
    "weightless_model",
]  # fmt: skip


@pytest.fixture
def versions(store: str) -> int:
    """A registry with that many versions of the model, none of which has an alias or artifacts."""
    client, n_versions = runs.client(), 8
    client.create_registered_model(registry.MODEL_NAME)
    for number in range(1, n_versions + 1):
        client.create_model_version(registry.MODEL_NAME, f"nowhere/{number}")
    return n_versions
