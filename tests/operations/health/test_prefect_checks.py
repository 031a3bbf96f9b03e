"""What `emuedit doctor` says about the set-up of Prefect and MLflow servers."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit.operations.health import prefect_checks, server_checks, server_processes
from emuedit.operations.health.health_finding import Finding
from emuedit.operations.servers import server_stack
from tests.operations.conftest import Answers
from tests.repository import ROOT

SLEEP = "import time; time.sleep(60)"
LIMIT = f"/api/v2/concurrency_limits/{server_stack.GPU_LIMIT}"
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


@pytest.fixture(autouse=True)
def pipeline_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a pipeline that uses a GPU, no settings of Prefect, and only the processes that the test starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: x, meta: {gpu: true}}, captions: {cmd: x}}")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv(HEARTBEAT, "30")
    before = {process.pid for process in server_processes.processes_with("prefect", "worker", "start")}
    real = server_processes.processes_with
    monkeypatch.setattr(
        prefect_checks, "processes_with", lambda *words: (entry for entry in real(*words) if entry.pid not in before)
    )


@contextmanager
def process(*words: str, **environment: str) -> Iterator[int]:
    """A process with this command line after `python -c ...`."""
    variables = {**{name: value for name, value in os.environ.items() if name != HEARTBEAT}, **environment}
    with subprocess.Popen([sys.executable, "-c", SLEEP, *words], env=variables) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def answers(limit: tuple[int, Any] = (404, {}), pools: Any = ()) -> Answers:
    names = [{"name": name, "enabled": True} for name in prefect_checks.AUTOMATIONS]
    return {
        "/api/health": (200, True),
        "/api/admin/version": (200, importlib.metadata.version("prefect")),
        "/api/flow_runs/filter": (200, []),
        "/api/automations/filter": (200, names),
        "/api/work_pools/filter": (200, list(pools)),
        LIMIT: limit,
    }


def findings(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    return {finding.name: finding for finding in server_checks.check_prefect()}


def test_the_automations_that_are_checked_are_those_of_the_file() -> None:
    content = yaml.safe_load((ROOT / "infra/prefect/automations.yaml").read_text())
    states = {entry["name"] for entry in content["automations"] if entry["actions"][0]["type"] == "change-flow-run-state"}
    assert set(prefect_checks.AUTOMATIONS) == states


def test_missing_and_disabled_automations_are_found(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = answers()
    url = serve(prepared)
    assert findings(url, monkeypatch)["automations"].status == "pass"
    prepared["/api/automations/filter"] = (200, [{"name": "crashed-without-heartbeat", "enabled": False}])
    finding = findings(url, monkeypatch)["automations"]
    assert finding.status == "warn"
    assert "crashed-without-heartbeat, pending-too-long" in finding.detail
    assert "flows.server_setup" in finding.fix


@pytest.mark.slow
def test_a_missing_or_inactive_gpu_limit_is_found(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = answers()
    url = serve(prepared)
    finding = findings(url, monkeypatch)["GPU slots"]
    assert (finding.status, finding.fix) == ("warn", "uv run prefect gcl create emuedit-gpu --limit 1")
    prepared[LIMIT] = (200, {"limit": 2, "active_slots": 1, "active": True})
    finding = findings(url, monkeypatch)["GPU slots"]
    assert finding.status == "warn"
    assert finding.detail == "1 of 2 in use, but no flow runs: a run was killed"
    state = {"timestamp": datetime.now(UTC).isoformat()}
    prepared["/api/flow_runs/filter"] = (200, [{"name": "retrain", "state_type": "RUNNING", "state": state}])
    finding = findings(url, monkeypatch)["GPU slots"]
    assert (finding.status, finding.detail) == ("pass", "1 of 2 in use")
    prepared[LIMIT] = (200, {"limit": 2, "active_slots": 0, "active": False})
    assert findings(url, monkeypatch)["GPU slots"].status == "warn"
    Path("dvc.yaml").write_text("stages: {captions: {cmd: x}}")
    assert "GPU slots" not in findings(url, monkeypatch)


@pytest.mark.slow
def test_a_shell_or_worker_with_slow_heartbeats_is_found(
    serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = serve(answers())
    assert findings(url, monkeypatch)["heartbeats"].status == "pass"
    with process("prefect", "worker", "start", **{HEARTBEAT: "30"}):
        assert findings(url, monkeypatch)["heartbeats"].status == "pass"
    with process("prefect", "worker", "start") as pid:
        finding = findings(url, monkeypatch)["heartbeats"]
        assert finding.status == "warn"
        assert f"worker {pid} every 180 s" in finding.detail
    monkeypatch.delenv(HEARTBEAT)
    finding = findings(url, monkeypatch)["heartbeats"]
    assert "this shell every 180 s" in finding.detail
    assert f"export {HEARTBEAT}=30" in finding.fix
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/profiles.toml").write_text(f'active = "team"\n[profiles.team]\n{HEARTBEAT} = "20"\n')
    assert findings(url, monkeypatch)["heartbeats"].status == "pass"


def test_sqlite_with_a_worker_is_found(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = answers(pools=[{"name": "local", "status": "READY"}])
    url = serve(prepared)
    assert "Prefect database" not in findings(url, monkeypatch), "the server is not a process that can be read"
    server = ("prefect", "server", "start", "--port", url.rpartition(":")[2])
    with process(*server, PREFECT_SERVER_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////tmp/prefect.db"):
        finding = findings(url, monkeypatch)["Prefect database"]
        assert finding.status == "warn"
        assert "PostgreSQL" in finding.fix
        prepared["/api/work_pools/filter"] = (200, [{"name": "local", "status": "NOT_READY"}])
        assert findings(url, monkeypatch)["Prefect database"].status == "pass"
    with process(*server, PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://127.0.0.1/prefect"):
        assert "Prefect database" not in findings(url, monkeypatch)


@pytest.mark.parametrize(("setting", "status"), [({}, "warn"), ({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, "pass")])
def test_mlflow_with_job_processes_is_found(
    setting: dict[str, str], status: str, serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve({"/health": (200, "OK"), "/api/2.0/mlflow/experiments/search": (200, {"experiments": []})})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", raising=False)
    with process("mlflow", "server", "--port", url.rpartition(":")[2], **setting):
        (finding,) = [entry for entry in server_checks.check_mlflow() if entry.name == "MLflow jobs"]
    assert finding.status == status
