"""Checks of the servers at MLFLOW_TRACKING_URI and PREFECT_API_URL, also of Prefect's profile, and of hanging runs."""

import importlib.metadata
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from emuedit.operations.health import prefect_checks, running_runs
from emuedit.operations.health.health_finding import Finding
from emuedit.operations.health.registry_checks import mlflow_account
from emuedit.operations.health.server_processes import find_server
from emuedit.operations.servers.background_process import memory_bytes
from emuedit.operations.servers.http_probe import Answer, ask
from emuedit.operations.servers.server_stack import ACCOUNT_ADVICE, AUTH_ENV
from emuedit.tracking import store_address
from emuedit.tracking.service_errors import hide_password

_ANSWER_S = 10.0  # a slower server counts as unreachable
_PENDING = timedelta(minutes=40)  # infra/prefect/automations.yaml
_RUNNING = timedelta(days=3)  # as the Job of a retrain in infra/k8s; a training of photographs takes days
_MAX_SKEW_S = 60.0
_PROXIED = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")
_API_ENV = "PREFECT_API_URL"
_JOBS = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
_STALE = "{unset}, or start the servers: `uv run emuedit up`, then `source .emuedit/env`"


def check_mlflow() -> Iterator[Finding]:
    """MLflow answers, accepts this host name, and has no run without a process."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "") or store_address.server_variables().get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("file:") or uri.startswith(("/", "./")):
        fix = "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db, and `mlflow migrate-filestore` for old runs"
        yield Finding("MLflow", "fail", f"{uri}: MLflow 3.17 refuses to log to folders", fix)
        return
    if not uri.startswith("http"):
        yield Finding("MLflow", "pass", f"no server: {uri.split('?')[0].split('@')[-1] or 'the file mlflow.db'}")
        path = Path(uri.removeprefix("sqlite:///").split("?")[0] or "mlflow.db")
        if path.is_file():
            yield from running_runs.check_runs(running_runs.runs_of_file(path))
        return
    uri = uri.rstrip("/")
    health = ask(f"{uri}/health", _ANSWER_S)
    if problem := _health_problem("MLflow", uri, health, "MLFLOW_TRACKING_URI"):
        yield problem
        return
    experiments = ask(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", _ANSWER_S, account=mlflow_account())
    if experiments.status == 403:
        fix = "start the server with --allowed-hosts and this name, or behind a proxy the name that the proxy sends"
        yield Finding("MLflow", "fail", f"{hide_password(uri)} answers 403: it does not allow this host name", fix)
    elif experiments.status == 401:
        detail = (
            f"{hide_password(uri)} rejects this name and password"
            if mlflow_account()
            else f"{hide_password(uri)} requires a name and a password"
        )
        yield Finding("MLflow", "fail", detail, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    elif not experiments.is_success:
        yield Finding("MLflow", "fail", _no_answer(uri, experiments), "check the server's log")
    else:
        yield Finding("MLflow", "pass", f"{hide_password(uri)} answers")
        yield from _clock_finding("MLflow", health)
        yield from _artifact_finding(uri)
        yield from _job_finding(uri)
        yield from running_runs.check_runs(running_runs.runs_of_server(uri, mlflow_account()))


def check_prefect() -> Iterator[Finding]:
    """Prefect answers, has the client's version, no flow run hangs, and it is set up as the flows need it."""
    api = _prefect_setting(_API_ENV).rstrip("/")
    if not api:
        yield Finding("Prefect", "pass", "no server: each retrain starts a local one")
        return
    health = ask(f"{api}/health", _ANSWER_S)
    if problem := _health_problem(
        "Prefect", api, health, _API_ENV, "" if os.environ.get(_API_ENV) else f"prefect config unset {_API_ENV}"
    ):
        yield problem
        return
    client_version, answer = (
        importlib.metadata.version("prefect"),
        ask(f"{api}/admin/version", _ANSWER_S, account=_prefect_account()),
    )
    server_version = str(answer.json()) if answer.is_success else "unknown"
    if answer.status == 401:
        yield Finding("Prefect", "fail", f"{hide_password(api)} rejects this client", ACCOUNT_ADVICE)
        return
    if server_version.split(".")[:2] == client_version.split(".")[:2]:
        yield Finding("Prefect", "pass", f"{hide_password(api)} answers, version {server_version}")
    else:
        yield Finding(
            "Prefect",
            "warn",
            f"{hide_password(api)} has version {server_version}, this client {client_version}",
            "use the same version for both",
        )
    yield from _clock_finding("Prefect", health)
    yield from _flow_runs(api)
    yield from prefect_checks.check_setup(api, _prefect_account())


def _artifact_finding(uri: str) -> Iterator[Finding]:
    """A server with artifacts in S3 redirects clients to its own address of the store."""
    answer = ask(f"{uri}/api/3.0/mlflow/server-info", _ANSWER_S, account=mlflow_account())
    if not answer.is_success or not answer.json().get("multipart_downloads_enabled"):
        return
    if all(os.environ.get(name, "").lower() == "false" for name in _PROXIED):
        yield Finding("MLflow artifacts", "pass", "in S3, through the server")
        return
    detail = "in S3: downloads use the server's address of the store, and fail after two minutes if it is unreachable from here"
    yield Finding("MLflow artifacts", "warn", detail, "if so: export " + " ".join(f"{name}=false" for name in _PROXIED))


def _job_finding(uri: str) -> Iterator[Finding]:
    """A server of this machine with job processes, which nothing here uses; that of other servers is not readable."""
    server = find_server(uri, "mlflow", "server")
    if server is None:
        return
    if server.environment.get(_JOBS, "true").lower() in ("false", "0"):
        yield Finding("MLflow jobs", "pass", "off")
        return
    detail = f"on: 8 more processes and 2 GB of memory, of {memory_bytes(server.pid) / 1e9:.1f} GB in all"
    yield Finding("MLflow jobs", "warn", detail, f"start the server with {_JOBS}=false, or with `uv run emuedit up`")


def _flow_runs(api: str) -> Iterator[Finding]:
    """Flow runs that hold a slot: PENDING for over 40 minutes, RUNNING or with a pod that waits for three days."""
    payload = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}, "limit": 200}
    answer = ask(f"{api}/flow_runs/filter", _ANSWER_S, payload, _prefect_account())
    if not answer.is_success:
        fix = "" if answer.location else "`uv sync` where the server runs: Prefect 3.8 needs fastapi below 0.151"
        yield Finding("flow runs", "fail", f"cannot be listed: {answer.problem}", fix)
        return
    runs = answer.json()
    old = [run for run in runs if _age(run) > _longest(run)]
    detail = f"{len(runs)} pending or running, {len(old)} of them for too long"
    if old:
        detail += f", such as {old[0]['name']} ({old[0]['state_type']} for {_age(old[0])})"
    fix = "without a process: uv run prefect flow-run cancel <id>; apply infra/prefect/automations.yaml, see docs/operations.md"
    yield Finding("flow runs", "warn" if old else "pass", detail, fix)


def _longest(run: dict[str, Any]) -> timedelta:
    """Time for which a flow run may be in its state."""
    has_pod = run["state"].get("name") == "InfrastructurePending"
    return _PENDING if run["state_type"] == "PENDING" and not has_pod else _RUNNING


def _age(run: dict[str, Any]) -> timedelta:
    """Time since a flow run entered its state, rounded down to seconds."""
    start = datetime.fromisoformat(str(run["state"]["timestamp"]).replace("Z", "+00:00"))
    return timedelta(seconds=int((datetime.now(UTC) - start).total_seconds()))


def _clock_finding(name: str, answer: Answer) -> Iterator[Finding]:
    """Warn if a server's clock differs from this one, which breaks schedules, leases and signed URLs."""
    from email.utils import parsedate_to_datetime

    date = dict(answer.headers).get("date")
    skew_s = (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds() if date else 0.0
    if abs(skew_s) > _MAX_SKEW_S:
        yield Finding(f"clock of {name}", "warn", f"differs by {skew_s:.0f} s", "synchronise both machines with a time server")


def _prefect_account() -> str:
    return _prefect_setting(AUTH_ENV)


def _prefect_setting(name: str) -> str:
    """A setting of Prefect, from the environment or the active profile; empty if it is in neither."""
    return os.environ.get(name) or prefect_checks.read_profile().get(name, "")


def _health_problem(name: str, url: str, health: Answer, variable: str, unset: str = "") -> Finding | None:
    """Why clients cannot use a server by its answer at /health; None if they can.

    variable: that with its address. unset: the command that removes the address; default: unset VARIABLE.

    A redirect is a failure: clients would send a redirected POST as a GET, or the account to another server.
    """
    if health.location:
        address = hide_password(health.location.removesuffix("/health"))
        detail = f"{hide_password(url)} redirects to {address}, and requests with data or an account do not follow"
        return Finding(name, "fail", detail, f"set {variable} to that address")
    if not health.is_success:
        return Finding(name, "fail", _no_answer(url, health), _STALE.format(unset=unset or f"unset {variable}"))
    return None


def _no_answer(url: str, answer: Answer) -> str:
    return hide_password(f"{url} does not answer: {answer.problem}")


CHECKS = (check_mlflow, check_prefect)
