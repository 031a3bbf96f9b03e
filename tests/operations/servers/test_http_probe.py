from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from emuedit.operations.health import server_checks
from emuedit.operations.servers.http_probe import ask
from flows import prefect_access
from tests.conftest import ChatEndpoint

Requests = list[tuple[str, str, str | None]]


class RedirectingServer(ThreadingHTTPServer):
    """Redirects each request to the same path below `address`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Redirect)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.address = ""
        self.status = 302


class _Redirect(BaseHTTPRequestHandler):
    server: RedirectingServer

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Location", f"{self.server.address}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


class Target(BaseHTTPRequestHandler):
    """Counts what reaches the address of a redirect, and answers `true`."""

    requests: ClassVar[Requests] = []

    def do_GET(self) -> None:
        self.requests.append((self.command, self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def reached(redirect: RedirectingServer) -> Iterator[Requests]:
    """Method, path and header Authorization of what reaches the server to which `redirect` redirects."""
    Target.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Target) as target:
        redirect.address = f"http://127.0.0.1:{target.server_port}"
        thread = Thread(target=target.serve_forever, args=(0.01,))
        thread.start()
        yield Target.requests
        target.shutdown()
        thread.join()


@pytest.fixture
def redirect() -> Iterator[RedirectingServer]:
    with RedirectingServer() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_requests_name_the_project_as_their_agent(endpoint: ChatEndpoint) -> None:
    """Cloudflare answers 403 to the agent of urllib: a server behind it would count as one that refuses its account."""
    endpoint.answers = [(200, {"status": "OK"})]
    assert ask(endpoint.url, 5.0, {"question": 1}).json() == {"status": "OK"}
    assert endpoint.requests[0][1]["User-Agent"] == "emuedit"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", ["payload", "account", "account in the address"])
def test_a_redirect_gets_neither_payload_nor_account(
    kind: str, status: int, redirect: RedirectingServer, reached: Requests
) -> None:
    redirect.status = status
    url = f"{redirect.url}/runs"
    if kind == "account in the address":
        answer = ask(url.replace("//", "//user:secret@"), 5.0)
    else:
        answer = ask(url, 5.0, {"limit": 1}) if kind == "payload" else ask(url, 5.0, account="user:secret")
    assert reached == []
    assert (answer.status, answer.location) == (status, f"{redirect.address}/runs")
    assert answer.problem == f"it redirects to {redirect.address}/runs; use that address"


def test_a_plain_query_follows_a_redirect_and_tells_where(redirect: RedirectingServer, reached: Requests) -> None:
    answer = ask(f"{redirect.url}/health", 5.0)
    assert (answer.is_success, answer.location) == (True, f"{redirect.address}/health")
    assert reached == [("GET", "/health", None)]
    assert ask(f"{redirect.address}/health", 5.0).location == ""


def test_a_password_in_the_address_of_a_redirect_is_hidden(redirect: RedirectingServer) -> None:
    redirect.address = "http://user:secret@127.0.0.1:9"
    assert ask(redirect.url, 5.0, {}).problem.startswith("it redirects to http://user:***@127.0.0.1:9")


def test_the_doctor_names_the_address_of_a_redirect(
    redirect: RedirectingServer, reached: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server behind https: its POSTs would arrive as GETs, and its version be listed as unknown."""
    monkeypatch.setenv("PREFECT_API_URL", f"{redirect.url}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "user:secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", redirect.url)
    (prefect,) = server_checks.check_prefect()
    (mlflow,) = server_checks.check_mlflow()
    assert (prefect.status, prefect.fix) == ("fail", "set PREFECT_API_URL to that address")
    assert f"{redirect.url}/api redirects to {redirect.address}/api, and" in prefect.detail
    assert (mlflow.status, mlflow.fix) == ("fail", "set MLFLOW_TRACKING_URI to that address")
    assert f"{redirect.url} redirects to {redirect.address}, and" in mlflow.detail
    assert {authorization for _, _, authorization in reached} == {None}


def test_a_retrain_names_the_address_of_a_redirect(redirect: RedirectingServer, reached: Requests) -> None:
    url = f"{redirect.url}/api".replace("//", "//user:secret@")
    with pytest.raises(
        prefect_access.ServerError, match=f"redirects to {redirect.address}/api; set PREFECT_API_URL to that address"
    ):
        prefect_access.check_url(url)
    assert reached == []
