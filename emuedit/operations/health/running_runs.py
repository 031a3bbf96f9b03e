"""Runs that MLflow lists as RUNNING, and whether their processes exist.

A starting retrain closes the runs that a killed one left in its workspace; other runs stay open.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from emuedit.operations.health.health_finding import Finding
from emuedit.operations.servers.http_probe import ask
from emuedit.process_identity import workspace
from emuedit.tracking.runs import WORKSPACE_TAG
from emuedit.tracking.store_address import open_read_only

_OLD_S = 24 * 3600.0
_ANSWER_S = 10.0
_FLOW_WORDS = ("flows.flow_process", "prefect.engine", "prefect.flow_engine")
_QUERY = f"""
    SELECT runs.run_uuid, runs.start_time, tags.value FROM runs
    LEFT JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = '{WORKSPACE_TAG}'
    WHERE runs.status = 'RUNNING'
"""  # noqa: S608  a constant


@dataclass(frozen=True)
class RunningRun:
    """A run listed as running: its id, start in seconds since the epoch, and workspace if known."""

    run_id: str
    started_s: float
    workspace: str


def check_runs(runs: list[RunningRun]) -> Iterator[Finding]:
    """Warn about runs of this folder without a process, and about runs of other folders older than a day."""
    here = workspace(Path.cwd())
    is_busy = _flow_runs_here()
    orphaned = [run.run_id for run in runs if run.workspace == here and not is_busy]
    others = [run for run in runs if run.workspace != here]  # a training of photographs takes days
    old = [run.run_id for run in others if time.time() - run.started_s > _OLD_S]
    detail = f"{len(runs)} listed as running, {len(orphaned)} of them without a process, {len(old)} for over a day"
    examples = f", such as {(orphaned + old)[0]}" if orphaned or old else ""
    fix = (
        "the next retrain here closes those without a process; for others, if their process is gone: "
        "MlflowClient().set_terminated(run_id, 'KILLED')"
    )
    yield Finding("MLflow runs", "warn" if orphaned or old else "pass", detail + examples, fix)


def runs_of_server(uri: str, account: str) -> list[RunningRun]:
    """The running runs of the first thousand experiments of a server. Empty if it does not answer."""
    experiments = ask(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1000", _ANSWER_S, account=account)
    if not experiments.is_success:
        return []
    ids = [experiment["experiment_id"] for experiment in experiments.json().get("experiments", [])]
    query = {"experiment_ids": ids, "filter": "attributes.status = 'RUNNING'", "max_results": 100}
    answer = ask(f"{uri}/api/2.0/mlflow/runs/search", _ANSWER_S, query, account)
    runs = answer.json().get("runs", []) if answer.is_success else []
    result = []
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run.get("data", {}).get("tags", [])}
        info = run["info"]
        result.append(RunningRun(info["run_id"], int(info["start_time"]) / 1000, tags.get(WORKSPACE_TAG, "")))
    return result


def runs_of_file(path: Path) -> list[RunningRun]:
    """The running runs of a database file, opened read-only. Raises sqlite3.Error for a file without MLflow's tables."""
    with open_read_only(path, timeout_s=2.0) as connection:
        rows = connection.execute(_QUERY).fetchall()
    return [RunningRun(run_id, (start_ms or 0) / 1000, tag or "") for run_id, start_ms, tag in rows]


def _flow_runs_here() -> bool:
    """Whether a flow runs in this folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            words = process.cmdline()
            if any(word in _FLOW_WORDS for word in words) and Path(process.cwd()).samefile(Path()):
                return True
    return False
