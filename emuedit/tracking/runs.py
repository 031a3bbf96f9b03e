"""The run of a flow in MLflow: opened before its stations, so that theirs stand below it, and closed with all that came out."""

import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emuedit.tracking.stats import TAG, read_stats, replay, tracking_uri

log = logging.getLogger(__name__)

EXPERIMENT = "emuedit"
_WORKSPACE = "emuedit.workspace"
_BATCH = 100  # params or tags in one request; MLflow refuses more
_LONGEST = 5000  # characters of a tag or a param
_ODD = re.compile(r"[^\w\-./ :]")  # what MLflow refuses in a key


def client() -> Any:
    """The client of the MLflow in use."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri())


def begin(name: str, workspace: str) -> str:
    """Open a run and return its id. A run that a killed flow left open for the same workspace is marked as killed."""
    mlflow = client()
    known = mlflow.get_experiment_by_name(EXPERIMENT)
    home = known.experiment_id if known else mlflow.create_experiment(EXPERIMENT)
    left = mlflow.search_runs([home], f"attributes.status = 'RUNNING' and tags.`{_WORKSPACE}` = '{workspace}'")
    for run in left:
        mlflow.set_terminated(run.info.run_id, "KILLED")
    return str(mlflow.create_run(home, tags={_WORKSPACE: workspace}, run_name=name).info.run_id)


def describe(
    run_id: str, params: Mapping[str, Any], metrics: Mapping[str, Any], tags: Mapping[str, str], files: Mapping[str, Path]
) -> None:
    """Write down params and metrics (nested: flattened with dots), tags, and files or folders under the names they get there."""
    from mlflow.entities import Metric, Param, RunTag

    mlflow, now = client(), int(time.time() * 1000)
    told: list[Any] = [Param(key, str(value)[:_LONGEST]) for key, value in flat(params)]
    for start in range(0, len(told), _BATCH):
        mlflow.log_batch(run_id, params=told[start : start + _BATCH])
    marks = [RunTag(_ODD.sub("_", key), value[:_LONGEST]) for key, value in tags.items()]
    for start in range(0, len(marks), _BATCH):
        mlflow.log_batch(run_id, tags=marks[start : start + _BATCH])
    numbers = [Metric(key, float(value), now, 0) for key, value in flat(metrics) if isinstance(value, int | float)]
    for start in range(0, len(numbers), 10 * _BATCH):
        mlflow.log_batch(run_id, metrics=numbers[start : start + 10 * _BATCH])
    for name, path in files.items():
        if path.is_dir():
            mlflow.log_artifacts(run_id, str(path), name)
        else:
            mlflow.log_artifact(run_id, str(path), str(Path(name).parent).removeprefix("."))


def end(run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    client().set_terminated(run_id, status)


def run_of(stats: Path) -> str:
    """Id of the run that mirrors a stats file; one that never reached MLflow is sent now. Empty when that fails."""
    mlflow, uid = client(), read_stats(stats)[0]["uid"]
    for last in (False, True):
        found = mlflow.search_runs(
            [one.experiment_id for one in mlflow.search_experiments()], f"tags.`{TAG}` = '{uid}'", max_results=1
        )
        if found or last:
            return str(found[0].info.run_id) if found else ""
        replay(stats)
    return ""


def flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`; lists by index. None and numbers that are not finite are left out."""
    if isinstance(values, Mapping | list | tuple):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for name, value in pairs:
            yield from flat(value, f"{key}.{name}" if key else str(name))
    elif values is not None and not (isinstance(values, float) and not math.isfinite(values)):
        yield _ODD.sub("_", key), values


def numbers_of(path: Path) -> Any:
    """What a metrics file (.json, .yaml) holds."""
    import yaml

    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
