"""Each check of `emuedit doctor`, output the trap that it is for."""

import contextlib
import importlib.metadata
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from emuedit.operations.health import doctor, installation_checks, machine_checks, running_runs, server_checks, workspace_checks
from emuedit.operations.health.health_finding import Finding
from tests.operations.conftest import Answers

DEAD = 2**22 - 7  # above the ids that Linux gives by default


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no servers and no proxy."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "MLFLOW_TRACKING_URI",
        "PREFECT_API_URL",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("PREFECT_PROFILES_PATH", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


def only(findings: Iterator[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_versions_that_do_not_work_together_fail_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"fastapi": "0.165.0", "sqlalchemy": "2.1.9"}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    findings = {finding.name: finding for finding in installation_checks.check_versions()}
    assert findings["package fastapi"].status == findings["package sqlalchemy"].status == "fail"
    assert "cannot start a flow" in findings["package fastapi"].detail
    assert "never creates a run" in findings["package sqlalchemy"].detail
    monkeypatch.undo()
    assert [finding.status for finding in installation_checks.check_versions()] == ["pass"]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_before_local_servers_fails(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", ".corp")
    (finding,) = installation_checks.check_proxies()
    assert finding.status == "fail"
    assert variable in finding.detail
    assert finding.fix == "export NO_PROXY=.corp,localhost,127.0.0.1,::1 no_proxy=.corp,localhost,127.0.0.1,::1"
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1")
    assert next(installation_checks.check_proxies()).status == "pass"


def test_a_folder_that_prefect_cannot_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "new/deep"))
    assert next(installation_checks.check_prefect_home()).status == "pass"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file/prefect"))
    finding = next(installation_checks.check_prefect_home())
    assert (finding.status, finding.detail) == (
        "fail",
        f"not writable: {tmp_path}/file/prefect (in {tmp_path}/file): Not a directory",
    )


def test_a_folder_without_git_or_lock_is_said(tmp_path: Path) -> None:
    assert next(installation_checks.check_lock()).status == "pass"
    (finding,) = installation_checks.check_git()
    assert finding.status == "warn"


def write_rwlock(pid: int) -> None:
    Path(".dvc/tmp").mkdir(parents=True, exist_ok=True)
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"data/pairs": {"write": {"pid": pid, "cmd": "dvc repro"}, "read": []}}))


def test_a_dvc_lock_of_a_recycled_process_id_fails_and_a_dead_one_does_not() -> None:
    write_rwlock(os.getpid())
    (finding,) = workspace_checks.check_dvc_locks()
    assert finding.status == "fail"
    assert "data/pairs" in finding.detail
    assert "rm .dvc/tmp/rwlock" in finding.fix
    assert not psutil.pid_exists(DEAD)
    write_rwlock(DEAD)
    assert next(workspace_checks.check_dvc_locks()).status == "pass"
    Path(".dvc/tmp/rwlock").unlink()
    assert "free" in next(workspace_checks.check_dvc_locks()).detail


def test_large_caches_are_named_with_their_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/emuedit").mkdir(parents=True)
    with (tmp_path / "cache/emuedit/weights").open("wb") as file:
        file.truncate(30 * 10**9)
    findings = list(workspace_checks.check_caches())
    assert [finding.status for finding in findings] == ["warn", "pass"]
    assert "30.00 GB" in findings[0].detail


def test_a_user_without_a_home_folder_has_no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    (finding,) = workspace_checks.check_caches()
    assert finding.detail.startswith("scratch: ")
    assert list(machine_checks.check_disk())


def test_low_disk_memory_and_descriptors_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Amount:
        free = available = 10**9
        total = 8 * 10**9

    monkeypatch.setattr(psutil, "disk_usage", lambda path: Amount)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Amount)
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda kind: (256, 65536))
    assert next(machine_checks.check_disk()).status == "fail"
    assert next(machine_checks.check_memory()).status == "warn"
    (descriptors,) = machine_checks.check_descriptors()
    assert (descriptors.status, descriptors.fix) == ("warn", "ulimit -n 65536")


@pytest.mark.slow
def test_number_formats_are_measured() -> None:
    (finding,) = machine_checks.check_number_formats()
    assert all(name in finding.detail for name in ("auto is", "float32", "bfloat16", "float16"))


def test_a_clock_that_differs_from_the_file_systems_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(machine_checks.time, "time", lambda: real() - 100)
    assert next(machine_checks.check_clock()).status == "warn"


def test_addresses_of_servers_that_are_gone_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    start = time.monotonic()
    findings = [next(check()) for check in server_checks.CHECKS]
    assert time.monotonic() - start < 10
    assert [finding.status for finding in findings] == ["fail", "fail"]
    assert all("emuedit up" in finding.fix for finding in findings)


@pytest.mark.parametrize("variable", ["PREFECT_HOME", "PREFECT_PROFILES_PATH"])
def test_a_prefect_server_that_a_profile_names_is_asked(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "profiles.toml"
    file.write_text('active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n')
    monkeypatch.setenv(variable, str(tmp_path if variable == "PREFECT_HOME" else file))
    (finding,) = server_checks.check_prefect()
    assert (finding.status, finding.detail.split(":")[:2]) == ("fail", ["http", "//127.0.0.1"])
    assert finding.fix.startswith("prefect config unset PREFECT_API_URL, or start the servers")
    file.unlink()
    assert next(server_checks.check_prefect()).status == "pass"


def test_mlflow_in_folders_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    assert next(server_checks.check_mlflow()).status == "fail"


@pytest.mark.parametrize(("status", "fix"), [(403, "--allowed-hosts"), (401, "MLFLOW_TRACKING_USERNAME")])
def test_mlflow_that_refuses_says_why(
    status: int, fix: str, serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    answers: Answers = {"/health": (200, "OK"), "/api/2.0/mlflow/experiments/search": (status, {})}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(answers))
    (finding,) = server_checks.check_mlflow()
    assert finding.status == "fail"
    assert fix in finding.fix


def test_mlflow_runs_that_hang_and_its_artifact_trap_are_found(
    serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = int(time.time() * 1000)
    listed = [{"info": {"run_id": "new", "start_time": now_ms}}, {"info": {"run_id": "old", "start_time": now_ms - 90_000_000}}]
    answers: Answers = {
        "/health": (200, "OK"),
        "/api/2.0/mlflow/experiments/search": (200, {"experiments": [{"experiment_id": "1"}]}),
        "/api/3.0/mlflow/server-info": (200, {"multipart_downloads_enabled": True}),
        "/api/2.0/mlflow/runs/search": (200, {"runs": listed}),
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serve(answers))
    for name in ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"):
        monkeypatch.delenv(name, raising=False)
    findings = {finding.name: finding for finding in server_checks.check_mlflow()}
    assert findings["MLflow"].status == "pass"
    assert findings["MLflow artifacts"].status == "warn"
    assert findings["MLflow runs"].detail == "2 listed as running, 0 of them without a process, 1 for over a day, such as old"
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    assert only(server_checks.check_mlflow(), "MLflow artifacts").status == "pass"


def test_runs_of_this_folder_without_a_process_are_found(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT, status TEXT, start_time BIGINT)")
        connection.execute("CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT)")
        now_ms = int(time.time() * 1000)
        rows = [("mine", "RUNNING", now_ms), ("elsewhere", "RUNNING", now_ms), ("done", "FINISHED", 0)]
        connection.executemany("INSERT INTO runs VALUES (?, ?, ?)", rows)
        workspace = f"{socket.gethostname()}:{tmp_path}"
        connection.execute("INSERT INTO tags VALUES ('mine', ?, ?)", (running_runs.WORKSPACE_TAG, workspace))
        connection.commit()
    finding = only(server_checks.check_mlflow(), "MLflow runs")
    assert finding.status == "warn"
    assert finding.detail == "2 listed as running, 1 of them without a process, 0 for over a day, such as mine"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "flows.flow_process"]) as process:
        assert only(server_checks.check_mlflow(), "MLflow runs").status == "pass"
        process.kill()


def test_prefect_that_refuses_the_client_says_why(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", serve({"/api/health": (200, True), "/api/admin/version": (401, {})}) + "/api")
    (finding,) = server_checks.check_prefect()
    assert finding.status == "fail"
    assert "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING; for the server of `emuedit up`: source .emuedit/env" in finding.fix


def test_flow_runs_that_hold_a_slot_are_found(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    since = (datetime.now(UTC) - timedelta(minutes=50)).isoformat()
    runs = [
        {"name": "stuck", "state_type": "PENDING", "state": {"timestamp": since}},
        {"name": "waits for a GPU", "state_type": "PENDING", "state": {"timestamp": since, "name": "InfrastructurePending"}},
        {"name": "training", "state_type": "RUNNING", "state": {"timestamp": since}},
    ]
    version = importlib.metadata.version("prefect")
    answers: Answers = {
        "/api/health": (200, True),
        "/api/admin/version": (200, version),
        "/api/flow_runs/filter": (200, runs),
    }
    monkeypatch.setenv("PREFECT_API_URL", serve(answers) + "/api")
    findings = {finding.name: finding for finding in server_checks.check_prefect()}
    assert findings["Prefect"].status == "pass"
    assert findings["flow runs"].status == "warn"
    assert "3 pending or running, 1 of them for too long, such as stuck (PENDING for 0:50:0" in findings["flow runs"].detail
    answers["/api/admin/version"], answers["/api/flow_runs/filter"] = (200, "3.2.1"), (422, {})
    findings = {finding.name: finding for finding in server_checks.check_prefect()}
    assert findings["Prefect"].status == "warn"
    assert "fastapi" in findings["flow runs"].fix


def test_the_exit_status_is_one_only_for_failures(capsys: pytest.CaptureFixture[str]) -> None:
    def check_good() -> list[Finding]:
        return [Finding("good", "pass", "fine"), Finding("odd", "warn", "strange", "look")]

    def check_bad_thing() -> list[Finding]:
        return [Finding("bad", "fail", "broken", "replace it")]

    def check_broken_itself() -> list[Finding]:
        raise KeyError("x")

    assert doctor.examine(as_json=False, checks=[check_good, check_broken_itself]) == 0
    output = capsys.readouterr().out
    assert "-> look" in output
    assert "broken itself" in output
    assert "1 ok, 2 warnings, 0 failures" in output
    assert doctor.examine(as_json=True, checks=[check_good, check_bad_thing]) == 1
    assert [row["status"] for row in json.loads(capsys.readouterr().out)] == ["pass", "warn", "fail"]
