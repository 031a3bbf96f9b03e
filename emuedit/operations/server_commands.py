"""The commands `emuedit up`, `down`, `status` and `doctor`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emuedit.data.name_list import first_names
from emuedit.data.writable_folder import contents
from emuedit.operations.health import registry_checks
from emuedit.operations.servers import (
    artifact_destination,
    ceph_store,
    local_ports,
    mlflow_tables,
    password_file,
    postgres_server,
    server_control,
    server_stack,
    worker_variables,
)
from emuedit.operations.servers.background_process import read_record
from emuedit.operations.storage.remote_error import RemoteError
from emuedit.progress import format_duration, waiting

DATA = Path(".emuedit")
"""Default data folder of the servers, in the working folder."""
PORT_BASE = 8500
"""The first port to try."""
_AUTOMATIONS = Path("infra/prefect/automations.yaml")
_IGNORED = ".gitignore"
_SETUP = "flows.server_setup"
_FAILURES = (
    server_control.ServersError,
    postgres_server.PostgresError,
    local_ports.PortError,
    artifact_destination.DestinationError,
    RemoteError,
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", server_stack.AUTH_ENV)
"""Variables whose values are in the file for the shell, but not printed."""


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `emuedit`."""
    up = commands.add_parser("up", help="start MLflow, Prefect, an S3 store and a worker on this machine")
    up.set_defaults(run=_up)
    up.add_argument(
        "--data", type=Path, default=DATA, metavar="FOLDER", help=f"folder for all data of the servers; default: {DATA}"
    )
    ports = f"first port to try; chosen ports are remembered; default: {PORT_BASE}"
    up.add_argument("--port-base", type=int, default=PORT_BASE, metavar="N", help=ports)
    down = commands.add_parser("down", help="stop what `up` started")
    down.set_defaults(run=_down)
    down.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help=f"data folder of `up`; default: {DATA}")
    status = commands.add_parser("status", help="show the state of the servers; exit status 1 unless all are healthy")
    status.set_defaults(run=_status)
    status.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help=f"data folder of `up`; default: {DATA}")
    status.add_argument("--json", action="store_true", help="print JSON")
    doctor = commands.add_parser("doctor", help="check this machine and folder for known problems")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _up(options: argparse.Namespace) -> int:
    if not 1024 <= options.port_base <= 65_000:
        raise ValueError(f"want --port-base from 1024 to 65000, got {options.port_base}")
    _check_data_folder(options.data)
    folder, cwd = options.data.resolve(), Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _IGNORED).exists():
        (folder / _IGNORED).write_text("*\n")  # so that git ignores the folder wherever it is
    has_flows = (cwd / "prefect.yaml").exists()
    try:
        with server_control.locked(folder):
            artifact_destination.remember_destination(folder)
            server_control.forget_dead(folder, print)
            layout, database, store = _choose_layout(folder, options.port_base)
            print(f"database: {database}\nstore: {store}")
            _start(layout, cwd, has_flows)
    except _FAILURES as error:
        print(f"emuedit up: {error}", file=sys.stderr)
        return 1
    if not has_flows:
        print("worker: not started, there is no prefect.yaml here")
    path = server_control.write_env(folder, layout.exports)
    print(f"\nMLflow   {layout.url('mlflow')}\nPrefect  {layout.url('prefect')}\n")
    print(f"Set these variables in every shell that uses them (`source {_relative(path)}`):")
    print("\n".join(server_control.export_lines(layout.exports, _SECRETS)))
    if note := registry_checks.describe_hidden(layout.url("mlflow")):
        print(f"\n{note}")
    return 0


def _check_data_folder(folder: Path) -> None:
    """Raise ValueError for a folder with files but without those of an earlier start, such as a project of the user.

    Other commands write to the default folder too.
    """
    if folder.name == DATA.name or not folder.is_dir() or local_ports.read_ports(folder):
        return
    early_files = {_IGNORED, server_control.LOCK_FILE, artifact_destination.DESTINATION_FILE}  # written before the ports
    if others := sorted({path.name for path in contents(folder)} - early_files):
        raise ValueError(
            f"want a new folder for --data, or one in which `emuedit up` was called before, got {folder} with "
            f"{first_names(others)}; name another, such as {folder / DATA}"
        )


def _start(layout: server_stack.StackLayout, cwd: Path, has_flows: bool) -> None:
    folder = layout.folder
    by_name = {service.name: service for service in server_stack.services(layout, has_flows)}
    with server_control.Starter(folder, cwd, print) as starter:
        if layout.postgres:
            layout.postgres.initialise()
            starter.start([by_name["postgres"]])
            layout.postgres.create_databases()
        else:
            server_stack.turn_on_write_ahead_log(layout.mlflow_file)
        mlflow = by_name["mlflow"]
        mlflow_tables.upgrade(layout, mlflow.command.environment, lambda: starter.end(mlflow), cwd)
        _start_all(starter, [by_name[name] for name in (ceph_store.NAME, "mlflow", "prefect") if name in by_name], folder)
        if layout.store:
            layout.store.create_bucket()
        if not has_flows:
            return
        arguments = ["-m", _SETUP, "--pool", server_stack.POOL, "--automations", str(_AUTOMATIONS)]
        with waiting("creating the work pool, deployments and automations"):
            log = folder / "logs" / "setup.log"
            server_control.run_setup(arguments, server_stack.child_environment(layout), cwd, log)
        _start_all(starter, [by_name["worker"]], folder)


def _start_all(starter: server_control.Starter, services: Sequence[server_stack.Service], folder: Path) -> None:
    """Start the services that do not run, and name the variables that only MLflow's server or the worker before had."""
    before = {service.name: read_record(folder, service.name) for service in services}
    starter.start(services)
    for service in services:
        if service.name not in worker_variables.RECORDED or read_record(folder, service.name) == before[service.name]:
            continue
        if names := ", ".join(worker_variables.record_start(folder, service.command)):
            print(
                f"{service.name}: started without {names}, which it had before; if it needs them, set them and call "
                "`emuedit up` again"
            )


def _down(options: argparse.Namespace) -> int:
    folder = options.data.resolve()
    if not folder.is_dir():
        print(f"nothing to stop: there is no {options.data} here")
        return 0
    try:
        with server_control.locked(folder):
            layout = _read_layout(folder)
            services = server_stack.services(layout, has_worker=True) if layout else []
            if not server_control.end_all(folder, services, print):
                print("nothing was running")
    except _FAILURES as error:
        print(f"emuedit down: {error}", file=sys.stderr)
        return 1
    return 0


def _status(options: argparse.Namespace) -> int:
    folder = options.data.resolve()
    rows: list[server_control.ServerStatus] = []
    if layout := _read_layout(folder):
        if layout.store and not layout.store.is_created:  # never started here
            layout = replace(layout, store=None)
        services = server_stack.services(layout, has_worker=(Path.cwd() / "prefect.yaml").exists())
        rows = server_control.statuses(folder, services)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        print(_table(rows))
    else:
        print(f"no servers in {options.data}; `emuedit up` starts them")
    return 0 if rows and all(row.is_healthy for row in rows) else 1


def _doctor(options: argparse.Namespace) -> int:
    from emuedit.operations.health.doctor import examine

    return examine(as_json=options.json)


def _read_layout(folder: Path) -> server_stack.StackLayout | None:
    """The layout of the last start of a data folder, without any change of it; None if there was no start.

    A server that was never started here has port 0.
    """
    remembered = local_ports.read_ports(folder)
    if not remembered:
        return None
    ports = {**dict.fromkeys(server_stack.PORT_NAMES, 0), **remembered}
    postgres, store = None, None
    if (folder / "postgres").exists():  # otherwise `find_postgres` would create a password
        with contextlib.suppress(postgres_server.PostgresError):  # `status` and `down` go on without it
            postgres, _ = postgres_server.find_postgres(folder, ports["postgres"])
    if (folder / ceph_store.KEYS_FILE).exists():  # otherwise `find_store` would create keys
        store, _ = ceph_store.find_store(folder, ports[ceph_store.NAME], ports[ceph_store.MONITOR])
    return server_stack.StackLayout(folder, ports, postgres, store)


def _choose_layout(folder: Path, port_base: int) -> tuple[server_stack.StackLayout, str, str]:
    """The layout for a start, with ports that are free or in use by its servers, and descriptions of its database and S3 store.

    Writes the ports, and creates the passwords of the database and of Prefect and the keys of the store if they are missing.
    """
    running = server_control.running_names(folder)
    if ceph_store.NAME in running:
        running.add(ceph_store.MONITOR)
    ports = local_ports.choose_ports(folder, server_stack.PORT_NAMES, port_base, running)
    postgres, reason = postgres_server.find_postgres(folder, ports["postgres"])
    if postgres and (folder / "prefect.db").exists() and not postgres.data.exists():
        postgres, reason = None, "SQLite, as in earlier starts of this folder"
    store, store_reason = ceph_store.find_store(folder, ports[ceph_store.NAME], ports[ceph_store.MONITOR])
    password = password_file.read_password(folder / server_stack.PREFECT_PASSWORD_FILE)
    return server_stack.StackLayout(folder, ports, postgres, store, password), reason, store_reason


def _table(rows: Sequence[server_control.ServerStatus]) -> str:
    lines = [("service", "state", "pid", "up", "memory", "address")]
    for row in rows:
        memory = f"{row.memory_bytes / 2**20:.0f} MB" if row.memory_bytes is not None else "-"
        lines.append(
            (
                row.name,
                row.state,
                str(row.pid or "-"),
                "-" if row.seconds is None else format_duration(row.seconds),
                memory,
                row.url or "-",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
