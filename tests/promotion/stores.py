"""Reading aliases of the registry, and drawing tickets of other processes, in tests."""

import pytest

from emuedit.tracking import mlflow_client, move_tickets, registry


def number_at(alias: str) -> int | None:
    """Number of the version that has the alias."""
    version = registry.version_at(alias)
    return version.number if version else None


def delete_version(version: int) -> None:
    """Delete a version in MLflow, as a person would in its UI. MLflow deletes its aliases with it."""
    mlflow_client.client().delete_model_version(registry.MODEL_NAME, str(version))


def draw_ticket(version: int, pid_space: str | None = None, is_alive: bool = True) -> int:
    """A ticket of a process of a machine of this name: of this one, or of one where process ids mean others."""
    with pytest.MonkeyPatch.context() as elsewhere:
        if pid_space is not None:
            elsewhere.setattr(move_tickets, "pid_space", lambda: pid_space)
        if not is_alive:
            elsewhere.setattr(move_tickets, "start_mark", lambda pid: "earlier")
        return move_tickets.draw(version, "lost", "promotion")
