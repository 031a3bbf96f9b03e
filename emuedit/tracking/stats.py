"""What a station writes down while it runs. `stats.jsonl` is the truth, MLflow its mirror: losing the server loses no result.

    with Tracker(folder, "train", params={"lr": 1e-4}) as tracker:
        tracker.log(step, loss=0.1)

Every line goes to `folder/stats.jsonl` first. Then the mirror is tried, briefly; when that fails one warning says so, the
run goes on, lines wait in memory and are sent later, at the latest by `close`. What still waits then, `replay` sends.
MLFLOW_TRACKING_URI names the server; without it the mirror is the file `mlflow.db` in the working folder.
EMUEDIT_PARENT_RUN, which a flow sets, names the run under which this one is shown.
"""

import contextlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_BATCH = 1000  # metrics in one request; MLflow refuses more
PARENT = "EMUEDIT_PARENT_RUN"
TAG = "emuedit.run"  # carries the uid of a stats file, so that a run is found again instead of made twice
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_BETWEEN_S = 1.0  # so that a fast loop does not wait for a request at every step
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0  # after a failure

Line = dict[str, Any]


class Tracker:
    """Writes `stats.jsonl` and mirrors it to MLflow. Opening a folder that has one goes on with the same run."""

    def __init__(self, folder: str | Path, experiment: str, params: Mapping[str, Any] | None = None) -> None:
        """`params` are shown beside the run, which is named after the folder. Nothing here talks to a server."""
        self.path = Path(folder) / "stats.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_half_line(self.path)
        lines = read_stats(self.path) if self.path.exists() else []
        name = self.path.resolve().parent.name
        head = {"uid": uuid.uuid4().hex, "experiment": experiment, "name": name, "params": dict(params or {})}
        self._stream = self.path.open("a", encoding="utf-8")
        if lines:
            head = lines[0]
        else:
            self._write(head)
        self._mirror = _Mirror(head)

    def log(self, step: int, **metrics: float) -> None:
        """Record numbers of one step. A number that is not finite is kept as it is."""
        line = {"step": step, "ms": int(time.time() * 1000), "metrics": {key: _plain(value) for key, value in metrics.items()}}
        self._write(line)
        self._mirror.send([line])

    @property
    def unsent(self) -> int:
        """Lines that the mirror has not got yet."""
        return len(self._mirror.waiting)

    def close(self, failed: bool = False) -> None:
        """Send what waits, mark the run as finished or failed, close the file. Never raises on behalf of the mirror."""
        status = "FAILED" if failed else "FINISHED"
        self._write({"status": status})
        self._stream.close()
        self._mirror.close(status)
        if self.unsent:
            log.warning("%d lines of %s did not reach MLflow; `replay` sends them", self.unsent, self.path)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def _write(self, line: Line) -> None:
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()


def read_stats(path: str | Path) -> list[Line]:
    """Lines of a stats file: the head (uid, experiment, name, params), one per `log`, {"status"} at each end. Later lines win.

    Raises ValueError, naming file and line, for a line that is no JSON.
    """
    lines = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: want a JSON object, got {text[:80]!r}") from error
    return lines


def replay(path: str | Path) -> int:
    """Send a whole stats file to MLflow, into the run it belongs to. Harmless when repeated. Returns the lines still unsent."""
    head, *lines = read_stats(path)
    mirror = _Mirror(head)
    mirror.send([line for line in lines if "metrics" in line])
    mirror.close(next((line["status"] for line in reversed(lines) if "status" in line), "FINISHED"))
    return len(mirror.waiting)


class _Mirror:
    """Sends lines to MLflow while that works, keeps them while it does not. No method raises for MLflow's sake."""

    def __init__(self, head: Line) -> None:
        self.waiting: list[Line] = []
        self._head = head
        self._client: Any = None
        self._run_id = ""
        self._missing = self._warned = False
        self._pause_s, self._next_try_s = _FIRST_PAUSE_S, 0.0

    def send(self, lines: list[Line]) -> None:
        self.waiting += lines
        if not self._missing and time.monotonic() >= self._next_try_s:
            self._try()

    def close(self, status: str) -> None:
        if self._missing:
            return
        self._try()
        if self._run_id and not self.waiting:
            with contextlib.suppress(Exception), _impatient():
                self._client.set_terminated(self._run_id, status)

    def _try(self) -> None:
        try:
            with _impatient():
                self._flush()
        except ModuleNotFoundError as error:
            self._missing = True
            log.warning("%s: numbers go to stats.jsonl only", error)
        except Exception as error:  # whatever a server, a proxy or a disk may come up with
            if not self._warned:
                log.warning("MLflow is away: the run goes on, stats.jsonl keeps everything (%s)", str(error)[:200])
            self._warned = True
            self._next_try_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _flush(self) -> None:
        from mlflow.entities import Metric

        if not self._run_id:
            self._open()
        while self.waiting:
            batch: list[Any] = []
            taken = 0
            for line in self.waiting:
                if batch and len(batch) + len(line["metrics"]) > _BATCH:
                    break
                batch += [Metric(key, float(value), line["ms"], line["step"]) for key, value in line["metrics"].items()]
                taken += 1
            self._client.log_batch(self._run_id, metrics=batch)
            del self.waiting[:taken]
        self._pause_s, self._next_try_s = _FIRST_PAUSE_S, time.monotonic() + _BETWEEN_S

    def _open(self) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = self._client or MlflowClient(tracking_uri=tracking_uri())
        name, uid, parent = self._head["experiment"], self._head["uid"], os.environ.get(PARENT, "")
        known = self._client.get_experiment_by_name(name)
        experiments = [known.experiment_id] if known else []
        tags, title = {TAG: uid}, self._head["name"]
        if parent:  # shown below its parent only when both are of one experiment
            experiments.insert(0, self._client.get_run(parent).info.experiment_id)
            tags, title = tags | {"mlflow.parentRunId": parent}, f"{name} {title}"
        runs = self._client.search_runs(experiments, f"tags.`{TAG}` = '{uid}'", max_results=1) if experiments else []
        if runs:
            run = runs[0]
            for key, value in tags.items():
                self._client.set_tag(run.info.run_id, key, value)
        else:
            home = experiments[0] if experiments else self._client.create_experiment(name)
            run = self._client.create_run(home, tags=tags, run_name=title)
        params = [Param(key, str(value)) for key, value in self._head["params"].items()]
        for start in range(0, len(params), 100):  # MLflow refuses more at once
            self._client.log_batch(run.info.run_id, params=params[start : start + 100])
        self._run_id = run.info.run_id


def tracking_uri() -> str:
    """The MLflow in use: MLFLOW_TRACKING_URI, or else the file `mlflow.db` in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Short time-outs while the mirror is asked, unless the environment has its own; MLflow reads them at every call."""
    added = [key for key in _PATIENCE if key not in os.environ]
    os.environ.update({key: _PATIENCE[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _plain(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _cut_half_line(path: Path) -> None:
    """Drop what a killed run left after the last newline: a line that was never whole."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("%s ended in half a line, cut: %r", path, content[whole:][:80])
        with path.open("r+b") as stream:
            stream.truncate(whole)
