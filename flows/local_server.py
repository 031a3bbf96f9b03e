"""A Prefect server on this machine for one flow, under the process guard, so that it stops with the flow's process.

Prefect can start such a server itself, but leaves it running if the flow's process is killed.
"""

import contextlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from os import environ

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, get_current_settings, temporary_settings

from emuedit.operations.servers import http_probe
from emuedit.operations.servers.server_stack import ORIGINS_ENV, SERVER_AUTH_ENV
from emuedit.progress import waiting
from flows import process_guard
from flows.prefect_access import ServerError, check_account, check_url

_START_S = 300.0  # usually ten seconds; minutes on busy cores at the first start, which creates the database
_PROBE_S = 5.0  # for one answer
_TRIES = 3  # another process may take the port between the choice and the start
_SERVER_ENV = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # as Prefect sets them
_APP = "prefect.server.api.server:create_app"


@contextlib.contextmanager
def local_server(on_death: Callable[[int], None], meanwhile: Callable[[], object] = object) -> Iterator[None]:
    """Run a Prefect server during the block, unless PREFECT_API_URL is set. It requires a password that only this process has.

    `on_death` is called with the exit status, in another thread, if the server exits before the block ends. `meanwhile` is called
    while the server starts, which takes ten seconds of another core. Raises ServerError.
    """
    if url := PREFECT_API_URL.value():  # from the environment or a profile
        check_url(url)
        if not PREFECT_API_KEY.value():
            check_account(url, PREFECT_API_AUTH_STRING.value() or "")
        yield
        return
    with waiting("starting a local Prefect server"):
        account = f"emuedit:{secrets.token_urlsafe(24)}"
        server, url = _start({SERVER_AUTH_ENV: account}, meanwhile)
    is_over = threading.Event()

    def watch() -> None:
        status = server.wait()
        if not is_over.is_set():
            on_death(status)

    threading.Thread(target=watch, name="watch the Prefect server", daemon=True).start()
    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: account}):
            yield
    finally:
        is_over.set()
        server.terminate()
        server.wait()


def _start(variables: Mapping[str, str], meanwhile: Callable[[], object] = object) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a server with these variables; returns it and the URL of its API once it answers. `meanwhile` is called once."""
    status: int | None = None
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    for number in range(_TRIES):
        port = _free_port()
        address = f"http://127.0.0.1:{port}"
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", _APP, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(
            process_guard.command([*uvicorn, "--log-level", "error", "--lifespan", "on"]),
            env={**environ, **_SERVER_ENV, **settings, **variables, ORIGINS_ENV: address},
        )
        try:
            if not number:
                meanwhile()
        except BaseException:
            server.terminate()
            server.wait()
            raise
        url = f"{address}/api"
        until = time.monotonic() + _START_S
        while (status := server.poll()) is None:
            if http_probe.ask(f"{url}/health", _PROBE_S).is_success:
                return server, url
            if time.monotonic() > until:
                server.terminate()
                server.wait()
                raise ServerError(
                    f"the local Prefect server did not answer within {_START_S:g} s; set PREFECT_API_URL to a running server"
                )
            time.sleep(0.1)
    raise ServerError(
        f"the local Prefect server exited during startup {_TRIES} times, with exit status {status}; check for a full disk"
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
