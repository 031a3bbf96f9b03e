"""An MLflow client without a server."""

import time
from typing import Any


class FakeClient:
    """An MLflow client with a server in memory that can be made unreachable."""

    def __init__(self) -> None:
        self.is_down = False
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: list[str] = []

    def _check_connection(self) -> None:
        if self.is_down:
            raise ConnectionError("no connection")

    def get_experiment_by_name(self, name: str) -> Any:
        self._check_connection()
        state = {"experiment_id": name, "lifecycle_stage": "active"}
        return type("Experiment", (), state) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def get_run(self, run_id: str) -> Any:
        self._check_connection()
        return type("Run", (), {"info": type("Info", (), {"experiment_id": f"experiment of {run_id}"})})

    def search_runs(self, ids: list[str], query: str, max_results: int) -> list[Any]:
        self._check_connection()
        return [run["entity"] for uid, run in self.runs.items() if uid in query and run["experiment_id"] in ids]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._check_connection()
        self.runs[run_id]["tags"][key] = value

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> Any:
        self._check_connection()
        uid = tags["emuedit.run"]
        entity = type("Run", (), {"info": type("Info", (), {"run_id": uid, "status": "RUNNING", "end_time": None})})
        details = {"name": run_name, "experiment_id": experiment_id, "tags": dict(tags)}
        self.runs[uid] = {"entity": entity, "metrics": {}, "params": {}, "status": None, **details}
        return entity

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._check_connection()
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id]["metrics"] |= {(metric.key, metric.step): metric.value for metric in metrics}
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}

    def set_terminated(self, run_id: str, status: str) -> None:
        self._check_connection()
        self.runs[run_id]["status"] = self.runs[run_id]["entity"].info.status = status
        self.runs[run_id]["entity"].info.end_time = int(time.time() * 1000)

    def update_run(self, run_id: str, status: str) -> None:
        self._check_connection()
        self.runs[run_id]["status"] = self.runs[run_id]["entity"].info.status = status

    def search_experiments(self) -> list[Any]:
        return [self.get_experiment_by_name(name) for name in self.experiments]
