"""Metrics of a running stage. `stats.jsonl` is the source of truth and MLflow a mirror: a lost server loses no results.

    with Tracker(folder, "train", params={"lr": 1e-4}) as tracker:
        tracker.log(step, loss=0.1)

Every line is written to `folder/stats.jsonl` first. If MLFLOW_TRACKING_URI names a server, or EMUEDIT_PARENT_RUN the run of a
flow, it is then sent to MLflow, with short time-outs. If that fails, one warning is logged, the stage continues, and the lines
are kept in memory and sent later, at the latest by `close`. A stage that continues its file sends all lines again, since those
of a killed process may be missing; MLflow stores a repeated line once. `replay`, which `emuedit sync` and the end of a retrain
call, sends lines that are still unsent, including those of a stage that ran without a tracking server, such as under
`dvc repro`. `store_address` says which MLflow a flow uses.
"""

import contextlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from emuedit.tracking.mlflow_client import (
    MAX_METRICS_PER_REQUEST,
    MAX_PARAMS_PER_REQUEST,
    batches,
    client,
    create_experiment,
)
from emuedit.tracking.service_errors import hide_password
from emuedit.tracking.store_address import TRACKING_URI_ENV

log = logging.getLogger(__name__)

PARENT_RUN_ENV = "EMUEDIT_PARENT_RUN"
RUN_UID_TAG = "emuedit.run"
"""Tag with the uid of a stats file, by which its run is found instead of being created twice."""
_SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_MIN_INTERVAL_S = 1.0  # between requests, so that a fast loop does not wait for one at every step
_FIRST_PAUSE_S, _MAX_PAUSE_S = 30.0, 600.0  # after a failure

Line = dict[str, Any]


class Tracker:
    """Write metrics to `stats.jsonl` and mirror them to MLflow. A folder that has the file continues its run."""

    def __init__(self, folder: str | Path, experiment: str, params: Mapping[str, Any] | None = None) -> None:
        """The run is named after the folder and shows `params`. No server is contacted yet."""
        self.path = Path(folder) / "stats.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_incomplete_line(self.path)
        lines = read_stats(self.path) if self.path.exists() else []
        name = self.path.resolve().parent.name
        head = {"uid": uuid.uuid4().hex, "experiment": experiment, "name": name, "params": dict(params or {})}
        self._stream = self.path.open("a", encoding="utf-8")
        if lines:
            head = lines[0]
        else:
            self._write(head)
        self._mirror = _Mirror(head, is_enabled=any(os.environ.get(key) for key in (TRACKING_URI_ENV, PARENT_RUN_ENV)))
        self._mirror.waiting += [line for line in lines if "metrics" in line]

    def log(self, step: int, **metrics: float) -> None:
        """Log metrics of one step. NaN and infinities are stored as text."""
        values = {name: _to_json_value(value) for name, value in metrics.items()}
        line = {"step": step, "ms": int(time.time() * 1000), "metrics": values}
        self._write(line)
        self._mirror.send([line])

    @property
    def unsent(self) -> int:
        """Number of lines not sent to MLflow yet."""
        return len(self._mirror.waiting)

    def close(self, failed: bool = False) -> None:
        """Send the remaining lines, mark the run as finished or failed, close the file. Raises no errors of MLflow."""
        status = "FAILED" if failed else "FINISHED"
        self._write({"status": status})
        self._stream.close()
        self._mirror.close(status)
        if self.unsent and self._mirror.is_enabled:
            log.warning("%d lines of %s did not reach MLflow; `emuedit sync` sends them", self.unsent, self.path)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def _write(self, line: Line) -> None:
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()


def read_stats(path: str | Path) -> list[Line]:
    """Read a stats file: the head (uid, experiment, name, params), one line per `log`, and {"status"} after each run.

    If a step was logged twice, the later line counts. Raises ValueError, naming file and line, for a line that is
    not JSON.
    """
    lines = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: want a JSON object, got {text[:80]!r}") from error
    return lines


def replay(path: str | Path) -> int:
    """Send a stats file to its run in MLflow; returns the number of lines still unsent. It may be repeated safely."""
    head, *lines = read_stats(path)
    mirror = _Mirror(head, is_enabled=True)
    mirror.send([line for line in lines if "metrics" in line])
    mirror.close(last_status(lines))
    return len(mirror.waiting)


def last_status(lines: Sequence[Line]) -> str:
    """Status of the last attempt of a stage, from its stats file: FAILED or FINISHED; FINISHED if the file has none."""
    return next((str(line["status"]) for line in reversed(lines) if "status" in line), "FINISHED")


class _Mirror:
    """Sends lines to MLflow and keeps them while it is not reachable. No method raises errors of MLflow."""

    def __init__(self, head: Line, is_enabled: bool) -> None:
        self.is_enabled = is_enabled  # otherwise all lines wait
        self.waiting: list[Line] = []
        self._head = head
        self._client: Any = None
        self._run_id = ""
        self._warned = False
        self._pause_s, self._next_try_s = _FIRST_PAUSE_S, 0.0

    def send(self, lines: list[Line]) -> None:
        self.waiting += lines
        if self.is_enabled and time.monotonic() >= self._next_try_s:
            self._try()

    def close(self, status: str) -> None:
        if not self.is_enabled:
            return
        self._try()
        if self._run_id and not self.waiting:
            with contextlib.suppress(Exception), _short_timeouts():
                self._client.set_terminated(self._run_id, status)

    def _try(self) -> None:
        try:
            with _short_timeouts():
                self._flush()
        except ModuleNotFoundError as error:
            self.is_enabled = False
            log.warning("%s: metrics go to stats.jsonl only", error)
        except Exception as error:  # errors of the server, of a proxy or of the disk have no common type
            if not self._warned:
                reason = hide_password(str(error))[:200]
                log.warning("MLflow is not reachable: the run continues, stats.jsonl keeps all metrics (%s)", reason)
            self._warned = True
            self._next_try_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    def _flush(self) -> None:
        from mlflow.entities import Metric

        if not self._run_id:
            self._open_run()
        while self.waiting:
            batch: list[Any] = []
            n_lines = 0
            for line in self.waiting:
                if batch and len(batch) + len(line["metrics"]) > MAX_METRICS_PER_REQUEST:
                    break
                batch += [Metric(key, float(value), line["ms"], line["step"]) for key, value in line["metrics"].items()]
                n_lines += 1
            self._client.log_batch(self._run_id, metrics=batch)
            del self.waiting[:n_lines]
        self._pause_s, self._next_try_s = _FIRST_PAUSE_S, time.monotonic() + _MIN_INTERVAL_S

    def _open_run(self) -> None:
        """Find the run with the uid of the stats file, and set it to RUNNING again if it was closed; or create it."""
        from mlflow.entities import Param

        self._client = self._client or client()
        name, uid, parent_id = self._head["experiment"], self._head["uid"], os.environ.get(PARENT_RUN_ENV, "")
        experiment = self._client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage == "deleted":  # its name cannot be used for another one
            self._client.restore_experiment(experiment.experiment_id)
        experiment_ids = [experiment.experiment_id] if experiment else []
        tags, run_name = {RUN_UID_TAG: uid}, self._head["name"]
        if parent_id:  # MLflow nests runs only within one experiment
            experiment_ids.insert(0, self._client.get_run(parent_id).info.experiment_id)
            tags, run_name = tags | {"mlflow.parentRunId": parent_id}, f"{name} {run_name}"
        query = f"tags.`{RUN_UID_TAG}` = '{uid}'"
        runs = self._client.search_runs(experiment_ids, query, max_results=1) if experiment_ids else []
        if runs:
            run = runs[0]
            for key, value in tags.items():
                self._client.set_tag(run.info.run_id, key, value)
            if run.info.status != "RUNNING":
                self._client.update_run(run.info.run_id, "RUNNING")
        else:
            experiment_id = experiment_ids[0] if experiment_ids else create_experiment(self._client, name)
            run = self._client.create_run(experiment_id, tags=tags, run_name=run_name)
        params = [Param(key, str(value)) for key, value in self._head["params"].items()]
        for batch in batches(params, MAX_PARAMS_PER_REQUEST):
            self._client.log_batch(run.info.run_id, params=batch)
        self._run_id = run.info.run_id


@contextlib.contextmanager
def _short_timeouts() -> Iterator[None]:
    """Set short time-outs, which MLflow reads at every call, unless the environment has its own."""
    added = [key for key in _SHORT_TIMEOUTS if key not in os.environ]
    os.environ.update({key: _SHORT_TIMEOUTS[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _to_json_value(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _cut_incomplete_line(path: Path) -> None:
    """Remove an incomplete last line left by a killed run."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        log.warning("%s ended in an incomplete line, removed: %r", path, content[complete:][:80])
        with path.open("r+b") as stream:
            stream.truncate(complete)
