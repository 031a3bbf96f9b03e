"""The client of MLflow's server or database, and the limits of its requests."""

import os
from collections.abc import Iterator
from typing import Any

from emuedit.tracking.store_address import TRACKING_URI_ENV, tracking_uri

MAX_METRICS_PER_REQUEST = 1000
"""MLflow refuses more."""
MAX_PARAMS_PER_REQUEST = 100
"""Params or tags; MLflow refuses more."""
NO_LINKS_ENV = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"


def client() -> Any:
    """An MlflowClient for `tracking_uri()`, which prints no link after a run if the link would contain a password."""
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    if "@" in uri:
        os.environ.setdefault(NO_LINKS_ENV, "true")
    return MlflowClient(tracking_uri=uri)


def fluent_api() -> Any:
    """The module `mlflow`, whose functions use `tracking_uri()` from now on.

    MLflow also writes that to MLFLOW_TRACKING_URI, which would count as a server that the user has named. This is undone.
    """
    import mlflow

    before = os.environ.get(TRACKING_URI_ENV)
    mlflow.set_tracking_uri(tracking_uri())
    if before is None:
        os.environ.pop(TRACKING_URI_ENV, None)
    else:
        os.environ[TRACKING_URI_ENV] = before
    return mlflow


def create_experiment(mlflow: Any, name: str) -> str:
    """Create an experiment and return its id; that of the existing one if another process created it first."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.create_experiment(name))
    except MlflowException as error:
        experiment = mlflow.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Split a list into parts of at most `size` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
