"""Runs of flows in MLflow: started before the stages, whose runs become children, and closed with all results."""

import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emuedit.tracking import service_errors
from emuedit.tracking.mlflow_client import (
    MAX_METRICS_PER_REQUEST,
    MAX_PARAMS_PER_REQUEST,
    batches,
    client,
    create_experiment,
    fluent_api,
)
from emuedit.tracking.stats import RUN_UID_TAG, last_status, read_stats, replay

log = logging.getLogger(__name__)

EXPERIMENT = "emuedit"
WORKSPACE_TAG = "emuedit.workspace"
"""Tag of a run with the machine and the folder in which its flow runs."""
_MAX_VALUE_CHARS = 5000  # of a tag or a param
MAX_KEY_CHARS = 250
"""MLflow refuses longer keys of tags, params and metrics."""
_INVALID_KEY_CHARS = re.compile(r"[^\w\-./ :]")  # refused by MLflow


@dataclass(frozen=True)
class LoggedRun:
    """A run of a flow in MLflow."""

    run_id: str
    started_ms: int
    """Start, in ms since 1970."""
    metrics: Mapping[str, float]


def start_run(name: str, workspace: str) -> str:
    """Start a run and return its id."""
    return str(client().create_run(_experiment_id(), tags={WORKSPACE_TAG: workspace}, run_name=name).info.run_id)


def end_open_runs(workspace: str) -> None:
    """Mark open runs of the workspace, left by a killed flow, as killed. Call it only if no other flow runs there."""
    mlflow = client()
    for run in mlflow.search_runs([_experiment_id()], "attributes.status = 'RUNNING'"):
        if run.data.tags.get(WORKSPACE_TAG) == workspace:  # compared here, since a path may contain quotes
            mlflow.set_terminated(run.info.run_id, "KILLED")


def _experiment_id() -> str:
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    return str(experiment.experiment_id) if experiment else create_experiment(mlflow, EXPERIMENT)


def restore_experiment() -> bool:
    """Restore the experiment of the flows with its runs, if it was deleted, and return whether it was.

    A deleted experiment accepts no runs, but its name cannot be used for a new one.
    """
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None or experiment.lifecycle_stage != "deleted":
        return False
    mlflow.restore_experiment(experiment.experiment_id)
    return True


def is_active(run_id: str) -> bool:
    """Whether a run exists in MLflow and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client().get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def is_valid_key(key: str) -> bool:
    """Whether MLflow accepts a key of a tag, such as `dvc.` with a normalised path."""
    return len(key) <= MAX_KEY_CHARS and _INVALID_KEY_CHARS.search(key) is None


def log_run(
    run_id: str,
    *,
    params: Mapping[str, Any] = MappingProxyType({}),
    metrics: Mapping[str, Any] = MappingProxyType({}),
    tags: Mapping[str, str] = MappingProxyType({}),
    files: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Log params, metrics, tags and artifacts to a run.

    Nested params and metrics are flattened with dots. `files`: name of an artifact -> file or folder.
    """
    from mlflow.entities import Metric, Param, RunTag

    mlflow, now_ms = client(), int(time.time() * 1000)
    run_params = [Param(key, str(value)[:_MAX_VALUE_CHARS]) for key, value in flatten(params)]
    for batch in batches(run_params, MAX_PARAMS_PER_REQUEST):
        mlflow.log_batch(run_id, params=batch)
    run_tags = [RunTag(_valid_key(key), value[:_MAX_VALUE_CHARS]) for key, value in tags.items()]
    for batch in batches(run_tags, MAX_PARAMS_PER_REQUEST):
        mlflow.log_batch(run_id, tags=batch)
    run_metrics = [Metric(key, float(value), now_ms, 0) for key, value in flatten(metrics) if isinstance(value, int | float)]
    for batch in batches(run_metrics, MAX_METRICS_PER_REQUEST):
        mlflow.log_batch(run_id, metrics=batch)
    with service_errors.transferring():
        for name, path in files.items():
            if path.is_dir():
                mlflow.log_artifacts(run_id, str(path), name)
            else:
                mlflow.log_artifact(run_id, str(path), str(Path(name).parent).removeprefix("."))


def log_text(run_id: str, name: str, text: str) -> None:
    """Log a text as the artifact `name` of a run."""
    client().log_text(run_id, text, name)


def read_text(run_id: str, name: str) -> str | None:
    """The text of an artifact of a run; None if there is no such artifact."""
    if not _has_artifact(run_id, name):
        return None
    return str(fluent_api().artifacts.load_text(f"runs:/{run_id}/{name}"))


def download_file(run_id: str, name: str, folder: Path) -> Path | None:
    """Download an artifact of a run to `folder`/`name`; None if there is no such artifact."""
    if not _has_artifact(run_id, name):
        return None
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(fluent_api().artifacts.download_artifacts(artifact_uri=f"runs:/{run_id}/{name}", dst_path=str(target.parent)))


def _has_artifact(run_id: str, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    folder = str(Path(name).parent)
    try:
        return name in {entry.path for entry in client().list_artifacts(run_id, "" if folder == "." else folder)}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def recent_runs(metric: str, n_runs: int) -> list[LoggedRun]:
    """Runs of flows that have a metric, the newest first."""
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    order = ["attributes.start_time DESC"]
    matches = mlflow.search_runs([experiment.experiment_id], f"metrics.`{metric}` >= 0", max_results=n_runs, order_by=order)
    return [LoggedRun(str(run.info.run_id), int(run.info.start_time), dict(run.data.metrics)) for run in matches]


def tag_values(tag: str, tags: Mapping[str, str]) -> list[str]:
    """Values of a tag in the newest hundred runs of flows with this tag and the given tags, whose keys are as for `log_run`."""
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    conditions = "".join(f" and tags.`{_valid_key(key)}` = '{value}'" for key, value in tags.items())
    tag = _valid_key(tag)
    query, order = f"tags.`{tag}` != ''{conditions}", ["attributes.start_time DESC"]
    matches = mlflow.search_runs([experiment.experiment_id], query, max_results=100, order_by=order)
    return [str(run.data.tags[tag]) for run in matches]


def end_run(run_id: str, status: str) -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    client().set_terminated(run_id, status)


def try_to_end_run(run_id: str, status: str) -> str:
    """`end_run`; returns an error text if MLflow cannot be used (empty: the run is closed)."""
    try:
        with service_errors.converted():
            end_run(run_id, status)
    except service_errors.ServiceError as error:
        return str(error)
    return ""


def run_id_of(stats: Path) -> str:
    """Id of the run that mirrors the stats file of a stage that has ended. Empty if there is none and none can be created.

    A file without a run is replayed first, and one whose last lines may be missing there because MLflow was lost: the run is
    still open, or was closed by an earlier attempt of the stage, with another status or before the last line was written.
    """
    head, *lines = read_stats(stats)
    run = _find_run(head["uid"])
    last_ms = max((line["ms"] for line in lines if "metrics" in line), default=0)
    if run is None or run.info.status != last_status(lines) or (run.info.end_time or 0) < last_ms:
        replay(stats)
        run = run or _find_run(head["uid"])
    return str(run.info.run_id) if run else ""


def _find_run(uid: str) -> Any:
    """The run with this uid of a stats file, in any experiment; None if there is none."""
    mlflow = client()
    experiment_ids = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    matches = mlflow.search_runs(experiment_ids, f"tags.`{RUN_UID_TAG}` = '{uid}'", max_results=1)
    return matches[0] if matches else None


def flatten(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten `{"a": {"b": 1}}` to `("a.b", 1)`; list items get their index. None, NaN and infinities are left out."""
    if isinstance(values, Mapping | list | tuple):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for name, value in items:
            yield from flatten(value, f"{key}.{name}" if key else str(name))
    elif values is not None and not (isinstance(values, float) and not math.isfinite(values)):
        yield _valid_key(key), values


def _valid_key(key: str) -> str:
    return _INVALID_KEY_CHARS.sub("_", key)


def read_metrics_file(path: Path) -> Any:
    """Contents of a metrics file (.json or .yaml)."""
    import yaml

    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
