"""What a flow does while its Prefect server starts, with a small HTTP server in place of Prefect's."""

import sys
import time
from collections.abc import Sequence

import psutil
import pytest

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


@pytest.fixture(autouse=True)
def small_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import process_guard

    def command(words: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", SERVER, words[words.index("--port") + 1]]

    monkeypatch.setattr(process_guard, "command", command)


@pytest.mark.slow
def test_the_flow_is_prepared_while_the_server_starts() -> None:
    from flows.local_server import local_server

    running: list[int] = []
    with local_server(lambda status: pytest.fail(f"ended with {status}"), meanwhile=lambda: running.append(len(servers()))):
        assert running == [1]
        assert len(servers()) == 1
    assert servers() == []


@pytest.mark.slow
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
