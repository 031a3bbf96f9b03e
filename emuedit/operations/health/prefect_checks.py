"""Checks of how a Prefect server is set up: automations, GPU slots, database, and the heartbeats of flows and workers."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

from emuedit.operations.health.health_finding import Finding
from emuedit.operations.health.server_processes import find_server, processes_with
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.server_stack import GPU_LIMIT, HEARTBEAT_ENV

AUTOMATIONS = ("crashed-without-heartbeat", "pending-too-long")
"""Those of infra/prefect/automations.yaml that release the slots of runs that died."""
_ANSWER_S = 10.0
_SETUP = "uv run emuedit up, or for a server on another machine: python -m flows.server_setup, see docs/operations.md"
((_HEARTBEAT, _HEARTBEAT_S),) = HEARTBEAT_ENV.items()
_DEFAULT_HEARTBEAT_S = "180"
_DATABASE_ENV = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def check_setup(api: str, account: str) -> Iterator[Finding]:
    """Findings about the server whose API answers at the URL `api`; `account`: `name:password`."""
    yield from _automation_findings(api, account)
    yield from _gpu_findings(api, account)
    yield from _database_findings(api, account)
    yield from _heartbeat_findings()


def _automation_findings(api: str, account: str) -> Iterator[Finding]:
    answer = ask(f"{api}/automations/filter", _ANSWER_S, {"limit": 200}, account)
    if not answer.is_success:
        yield Finding("automations", "warn", f"cannot be listed: {answer.problem}", "check the server's log")
        return
    enabled = {automation["name"] for automation in answer.json() if automation.get("enabled")}
    if missing := [name for name in AUTOMATIONS if name not in enabled]:
        detail = f"missing or disabled: {', '.join(missing)}; a run that died keeps its slot"
        yield Finding("automations", "warn", detail, _SETUP)
    else:
        yield Finding("automations", "pass", "release the slots of runs that died")


def _gpu_findings(api: str, account: str) -> Iterator[Finding]:
    """The limit for stages with `gpu: true`; without it they do not wait for each other."""
    if not _has_gpu_stages():
        return
    answer = ask(f"{api}/v2/concurrency_limits/{GPU_LIMIT}", _ANSWER_S, account=account)
    if answer.status == 404:
        detail = f"the limit {GPU_LIMIT} is missing: stages of several retrains use a GPU at the same time"
        yield Finding("GPU slots", "warn", detail, f"uv run prefect gcl create {GPU_LIMIT} --limit 1")
    elif not answer.is_success:
        yield Finding("GPU slots", "warn", f"cannot be read: {answer.problem}", "check the server's log")
    else:
        limit = answer.json()
        detail = f"{limit['active_slots']} of {limit['limit']} in use"
        if not limit.get("active", True):
            yield Finding("GPU slots", "warn", f"{detail}, but it is not active", f"uv run prefect gcl enable {GPU_LIMIT}")
        elif limit["active_slots"] and not _n_running(api, account):
            fix = f"uv run prefect gcl update {GPU_LIMIT} --active-slots 0, if they are still in use after two minutes"
            yield Finding("GPU slots", "warn", f"{detail}, but no flow runs: a run was killed", fix)
        else:
            yield Finding("GPU slots", "pass", detail)


def _n_running(api: str, account: str) -> int:
    """Number of running flow runs, of at most 200; 1 if they cannot be listed."""
    payload = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}, "limit": 200}
    answer = ask(f"{api}/flow_runs/filter", _ANSWER_S, payload, account)
    return len(answer.json()) if answer.is_success else 1


def _database_findings(api: str, account: str) -> Iterator[Finding]:
    """A server of this machine on SQLite with a worker; that of other servers is not readable."""
    server = find_server(api, "prefect", "server", "start")
    if server is None or not server.environment.get(_DATABASE_ENV, "sqlite").startswith("sqlite"):
        return
    pools = ask(f"{api}/work_pools/filter", _ANSWER_S, {"limit": 200}, account)
    ready = [pool["name"] for pool in pools.json() if pool.get("status") == "READY"] if pools.is_success else []
    if ready:
        detail = f"SQLite, with a worker of the pool {ready[0]}: writers that run at the same time fail with `database is locked`"
        fix = "for more than one person, install PostgreSQL and run `uv run emuedit up --data ANOTHER_FOLDER`"
        yield Finding("Prefect database", "warn", detail, fix)
    else:
        yield Finding("Prefect database", "pass", "SQLite, without a worker")


def _heartbeat_findings() -> Iterator[Finding]:
    """This shell and all workers of this machine send heartbeats as often as the automation expects them."""
    intervals = {"this shell": os.environ.get(_HEARTBEAT) or read_profile().get(_HEARTBEAT, _DEFAULT_HEARTBEAT_S)}
    for worker in processes_with("prefect", "worker", "start"):
        intervals[f"worker {worker.pid}"] = worker.environment.get(_HEARTBEAT, _DEFAULT_HEARTBEAT_S)
    slow = [f"{place} every {value} s" for place, value in intervals.items() if not _is_fast(value)]
    if slow:
        detail = f"{', '.join(slow)}, but a run without one for 90 s is set to Crashed"
        yield Finding("heartbeats", "warn", detail, f"export {_HEARTBEAT}={_HEARTBEAT_S}, and start the workers again with it")
    else:
        yield Finding("heartbeats", "pass", f"at least every {_HEARTBEAT_S} s")


def _is_fast(value: str) -> bool:
    return value.isdecimal() and 0 < int(value) <= int(_HEARTBEAT_S)


def read_profile() -> dict[str, str]:
    """Settings of Prefect's active profile; empty if there is none, or if it cannot be read."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        content = tomllib.loads(
            Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    profile = content.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or content.get("active"), {})
    return {name: str(value) for name, value in profile.items()}


def _has_gpu_stages() -> bool:
    """Whether a stage of the working folder has `meta: {gpu: true}`."""
    try:
        stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
        return any((stage.get("meta") or {}).get("gpu") for stage in stages.values())
    except (OSError, KeyError, AttributeError, yaml.YAMLError):  # no pipeline, or one that DVC would refuse
        return False
