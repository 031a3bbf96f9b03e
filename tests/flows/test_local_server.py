"""The Prefect server of a flow, and what the flow does while it starts, mostly with a small HTTP server in place of Prefect's."""

import os
import sys
import time
from collections.abc import Sequence

import psutil
import pytest

from emuedit.operations.servers import http_probe
from tests.flows.conftest import COMPLETE_DATABASE

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if SERVER in child.cmdline()]


@pytest.fixture
def small_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import process_guard

    def command(words: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SERVER, words[words.index("--port") + 1]]

    monkeypatch.setattr(process_guard, "command", command)


@pytest.mark.slow
def test_the_server_requires_a_password_that_only_the_flow_has(prepared_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any web page could use it otherwise, and have a flow run a command."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.local_server import local_server
    from flows.prefect_access import ServerError

    for name, value in COMPLETE_DATABASE.items():
        monkeypatch.setenv(name, value)
    with local_server(lambda status: pytest.fail(f"ended with {status}")):
        url, account = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
        assert http_probe.ask(f"{url}/admin/version", 20).status == 401
        assert http_probe.ask(f"{url}/admin/version", 20, account=account).is_success
        with get_client(sync_client=True) as client:
            client.read_flows()  # raises an error without the password
        assert account not in os.environ.values()
        with (
            temporary_settings(restore_defaults={PREFECT_API_AUTH_STRING}),
            pytest.raises(ServerError, match=r"requires credentials \(401\); set .*: source \.emuedit/env"),
            local_server(print),
        ):
            pass
        with (
            temporary_settings({PREFECT_API_AUTH_STRING: "emuedit:of-an-earlier-server"}),
            pytest.raises(ServerError, match=r"refuses the credentials of PREFECT_API_AUTH_STRING \(401\); set .*: source"),
            local_server(print),
        ):
            pass
    assert PREFECT_API_AUTH_STRING.value() is None


@pytest.mark.slow
@pytest.mark.usefixtures("small_server")
def test_the_flow_is_prepared_while_the_server_starts() -> None:
    from flows.local_server import local_server

    running: list[int] = []
    with local_server(lambda status: pytest.fail(f"ended with {status}"), meanwhile=lambda: running.append(len(servers()))):
        assert running == [1]
        assert len(servers()) == 1
    assert servers() == []


@pytest.mark.slow
@pytest.mark.usefixtures("small_server")
def test_no_server_is_left_if_the_preparation_fails() -> None:
    from flows.local_server import local_server

    def fail() -> None:
        until = time.monotonic() + 60
        while not servers():
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        raise ImportError("no such module")

    with pytest.raises(ImportError, match="no such module"), local_server(print, meanwhile=fail):
        pass
    assert servers() == []
