"""The servers of one machine in the order of their start, with their commands and health checks."""

import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emuedit.http_requests import no_proxy_variables
from emuedit.operations.servers import artifact_destination, ceph_store, postgres_server, worker_variables
from emuedit.operations.servers.background_process import BackgroundCommand
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.local_ports import HOST, SERVER_HOSTS

NAMES = ("postgres", ceph_store.NAME, "mlflow", "prefect", "worker")
"""All services, in the order of their start; they are stopped in the opposite order."""
PORT_NAMES = ("postgres", "mlflow", "prefect", "worker", ceph_store.NAME, ceph_store.MONITOR)
"""Names of the ports, in the order in which they are chosen."""
GPU_LIMIT = "emuedit-gpu"
"""Prefect's global concurrency limit for stages with `meta: {gpu: true}`, as in flows/gpu_slot.py."""
POOL = "local"
"""The Prefect work pool in prefect.yaml."""
WORKER_LIMIT = "2"
"""Maximum number of a worker's runs: one of the pool's default queue, which uses the folder, and one rollback."""
HEARTBEAT_ENV = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
"""For all processes that may run a flow: infra/prefect/automations.yaml waits 90 s, and Prefect's default is 180 s."""
LATE_ENV = {"PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "21600"}
"""For the Prefect server: a run that waits behind a training is not late after 15 s, which is Prefect's default."""
LEASES_ENV = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
"""Where a Prefect server stores which slots are in use, and until when."""
AUTH_ENV = "PREFECT_API_AUTH_STRING"
"""`name:password` with which clients use a Prefect server."""
ACCOUNT_ADVICE = f"set PREFECT_API_KEY or {AUTH_ENV}; for the server of `emuedit up`: source .emuedit/env"
"""What to do if a Prefect server refuses a client."""
SERVER_AUTH_ENV, ORIGINS_ENV = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
"""For a Prefect server: the `name:password` that it requires, and the addresses of web pages that may use it."""
PREFECT_PASSWORD_FILE = "prefect.password"  # noqa: S105  the name of a file
"""File in the data folder with the password of the Prefect server; created at the first start."""
_PREFECT_USER = "emuedit"
_ADDRESSES = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
_PROBE_S = 5.0
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Service:
    """A server that `emuedit up` starts.

    `is_healthy` queries it within a few seconds. `start_s`: time limit of the start in seconds; `grace_s`: of the stop after the
    signal `stop_signal`.
    """

    command: BackgroundCommand
    is_healthy: Callable[[], bool]
    start_s: float
    grace_s: float = 10.0
    stop_signal: int = signal.SIGTERM

    @property
    def name(self) -> str:
        """Name of the service and of its files."""
        return self.command.name


@dataclass(frozen=True)
class StackLayout:
    """The data folder of the servers, their ports, the PostgreSQL cluster and the S3 store, if any, and Prefect's password."""

    folder: Path
    ports: Mapping[str, int]
    postgres: postgres_server.Postgres | None
    store: ceph_store.CephStore | None = None
    prefect_password: str = ""

    def url(self, name: str) -> str:
        """URL of a server."""
        return f"http://{HOST}:{self.ports[name]}"

    @property
    def mlflow_file(self) -> Path:
        """MLflow's database if it is SQLite."""
        return self.folder / "mlflow.db"

    @property
    def exports(self) -> dict[str, str]:
        """Environment variables with the addresses and passwords of the servers and the heartbeat interval of flows."""
        variables = {
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            AUTH_ENV: f"{_PREFECT_USER}:{self.prefect_password}",
            **HEARTBEAT_ENV,
        }
        destination = artifact_destination.read_destination(self.folder)
        if destination.startswith("s3://"):  # otherwise clients get URLs with the server's address of the store
            variables |= {
                "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
                "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
            }
        return variables | (self.store.exports if self.store else {})


def services(layout: StackLayout, has_worker: bool) -> list[Service]:
    """The services in the order of their start; `has_worker`: with a worker for the flows of the working folder."""
    servers = [_postgres(layout.postgres)] if layout.postgres else []
    servers += [_store(layout.store)] if layout.store else []
    servers += [_mlflow(layout), _prefect(layout)]
    return [*servers, _worker(layout)] if has_worker else servers


def turn_on_write_ahead_log(database: Path) -> None:
    """Give an SQLite file, which is created if it is missing, a write-ahead log, in which readers do not wait for the writer."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def child_environment(layout: StackLayout) -> dict[str, str]:
    """Environment of all services: the user's, the addresses of the servers, and no proxy for them."""
    home = {"PREFECT_HOME": str(layout.folder / "prefect")}
    return {**os.environ, **_QUIET, **home, **layout.exports, **no_proxy_variables()}


def _postgres(postgres: postgres_server.Postgres) -> Service:
    url = f"postgresql://{HOST}:{postgres.port}"
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    command = BackgroundCommand("postgres", postgres.command, environment, url, postgres.user)
    return Service(command, postgres.answers, start_s=60.0, grace_s=60.0, stop_signal=signal.SIGINT)  # INT: fast shutdown


def _store(store: ceph_store.CephStore) -> Service:
    command = BackgroundCommand(ceph_store.NAME, store.command, store.environment, store.url)
    return Service(command, store.answers, start_s=150.0, grace_s=45.0)


def _mlflow(layout: StackLayout) -> Service:
    port, url = layout.ports["mlflow"], layout.url("mlflow")
    arguments = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    hosts = ",".join(f"{name}:{port}" for name in SERVER_HOSTS)
    destination = artifact_destination.read_destination(layout.folder)
    environment = {
        **child_environment(layout),
        "MLFLOW_BACKEND_STORE_URI": layout.postgres.uri("mlflow") if layout.postgres else f"sqlite:///{layout.mlflow_file}",
        artifact_destination.DESTINATION_ENV: destination,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 8 processes and 2 GB for nothing that is used here
    }
    del environment["MLFLOW_TRACKING_URI"]  # its own address, which it would ask
    optional = _optional(environment)
    if destination != artifact_destination.default_destination(layout.folder):
        optional.append(artifact_destination.DESTINATION_ENV)
    if endpoint := environment.get("S3_ENDPOINT_URL"):
        environment.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    command = BackgroundCommand("mlflow", arguments, environment, url, optional=optional)
    return Service(command, lambda: ask(f"{url}/health", _PROBE_S).is_success, start_s=180.0)


def _prefect(layout: StackLayout) -> Service:
    url, port = layout.url("prefect"), layout.ports["prefect"]
    arguments = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    database = layout.folder / "prefect.db"
    uri = layout.postgres.uri("prefect", driver="asyncpg") if layout.postgres else f"sqlite+aiosqlite:///{database}"
    environment = {
        **child_environment(layout),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": uri,
        # in PREFECT_HOME; by default in memory, so that a restart of the server would leave slots of GPU_LIMIT occupied forever
        LEASES_ENV: "prefect.server.concurrency.lease_storage.filesystem",
        **LATE_ENV,
        SERVER_AUTH_ENV: layout.exports[AUTH_ENV],
        ORIGINS_ENV: f"{url},http://localhost:{port}",
    }
    command = BackgroundCommand("prefect", arguments, environment, url, needs=[LEASES_ENV, SERVER_AUTH_ENV, ORIGINS_ENV])
    return Service(command, lambda: ask(f"{url}/api/health", _PROBE_S).is_success, start_s=300.0)


def _worker(layout: StackLayout) -> Service:
    url = layout.url("worker")
    arguments = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "emuedit", "--with-healthcheck"]
    environment = {
        **child_environment(layout),
        "PREFECT_WORKER_WEBSERVER_HOST": HOST,
        "PREFECT_WORKER_WEBSERVER_PORT": str(layout.ports["worker"]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = BackgroundCommand(
        "worker",
        [*arguments, "--limit", WORKER_LIMIT],
        environment,
        url,
        needs=_ADDRESSES,
        optional=dict.fromkeys([*layout.exports, *_optional(environment), *worker_variables.names_in(environment)]),
    )
    return Service(command, lambda: ask(f"{url}/health", _PROBE_S).is_success, start_s=120.0, grace_s=20.0)


def _optional(environment: Mapping[str, str]) -> list[str]:
    """Variables about S3 that are set in the shell, or for the store; a server that runs with other values is restarted."""
    return [name for name in ceph_store.S3_ENV if environment.get(name)]
