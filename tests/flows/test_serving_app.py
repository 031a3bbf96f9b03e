"""What the server does with a request before and beside MLflow's scoring server."""

import asyncio
import http.client
import importlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import uvicorn
from mlflow.pyfunc import scoring_server

LIMIT = 100
HEADERS = [(b"content-type", b"application/json")]


class CountingModel:
    """Stands for MLflow's wrapper of a model without a signature; counts the rows."""

    metadata = SimpleNamespace(_is_signature_from_type_hint=lambda: False, get_input_schema=lambda: None)

    def __init__(self) -> None:
        self.n_rows = 0

    def predict(self, data: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        self.n_rows += len(data)
        return data


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def app(model: CountingModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The module is imported with an app of this model, since MLflow's module loads the model of the environment on import."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # set by `init`; removed after the test
    mlflow_app = ModuleType("mlflow.pyfunc.scoring_server.app")
    mlflow_app.app = scoring_server.init(model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mlflow_app.__name__, mlflow_app)
    monkeypatch.delitem(sys.modules, "flows.serving_app", raising=False)
    serving_app = importlib.import_module("flows.serving_app")
    monkeypatch.setattr(serving_app, "MAX_BODY_BYTES", LIMIT)
    answer: Callable[..., Any] = serving_app.app
    return answer


def ask(app: Callable[..., Any], headers: list[tuple[bytes, bytes]], parts: list[bytes]) -> tuple[list[int], bytes, int]:
    """(status of each answer, body, number of parts that the server read) of a request."""
    sent: list[dict[str, Any]] = []
    unread = list(parts)

    async def receive() -> dict[str, Any]:
        if not unread:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": unread.pop(0), "more_body": bool(unread)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/invocations"}
    scope |= {"query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))
    statuses = [message["status"] for message in sent if message["type"] == "http.response.start"]
    return statuses, b"".join(message.get("body", b"") for message in sent), len(parts) - len(unread)


def refusal_of(app: Callable[..., Any], headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, str]:
    """(status, message) of an answer with one."""
    (status,), answer, _ = ask(app, headers, [body])
    return status, json.loads(answer)["message"]


def make_body(n_bytes: int) -> bytes:
    body = json.dumps({"dataframe_records": [{"n": 1}]}).encode()
    return body + b" " * (n_bytes - len(body))


def test_a_request_within_the_limit_is_answered(app: Callable[..., Any], model: CountingModel) -> None:
    body = make_body(LIMIT)
    for headers, parts in (([*HEADERS, (b"content-length", b"100")], [body]), (HEADERS, [body[:60], body[60:]])):
        statuses, answer, _ = ask(app, headers, parts)
        assert (statuses, json.loads(answer)) == ([200], {"predictions": [{"n": 1}]})
    assert model.n_rows == 2


def test_a_request_that_announces_more_is_refused_unread(app: Callable[..., Any], model: CountingModel) -> None:
    statuses, answer, n_read = ask(app, [*HEADERS, (b"content-length", b"101")], [make_body(LIMIT + 1)])
    assert (statuses, n_read, model.n_rows) == ([413], 0, 0)
    assert "want a request of at most " in json.loads(answer)["message"]


def test_a_request_in_chunks_is_read_up_to_the_limit(app: Callable[..., Any], model: CountingModel) -> None:
    body = make_body(3 * LIMIT)
    statuses, answer, n_read = ask(app, HEADERS, [body[start : start + 60] for start in range(0, len(body), 60)])
    assert (statuses, n_read, model.n_rows) == ([413], 2, 0)
    assert json.loads(answer)["error_code"] == "REQUEST_LIMIT_EXCEEDED"


def test_a_body_that_is_no_json_is_refused_without_a_copy_in_the_answer(app: Callable[..., Any], model: CountingModel) -> None:
    """MLflow's answer contained the bytes of a photograph: 295 MB for 40 MiB, and the server was busy with it for seconds."""
    for start in (b"\xff\xd8\xff\xe0", b"  [1]", b"not json"):
        status, message = refusal_of(app, HEADERS, start + b"x" * 50)
        assert status == 400
        assert "send the image in base64" in message
    status, *_ = ask(app, HEADERS, [b"\xef\xbb\xbf\n", b" " + make_body(60)])
    assert status == [200], "blanks and a byte order mark may come first"
    assert model.n_rows == 1


def test_a_request_without_a_content_type_gets_415(app: Callable[..., Any], model: CountingModel) -> None:
    assert refusal_of(app, [], make_body(60)) == (415, "want the header Content-Type: application/json, got none; add it")
    assert model.n_rows == 0


def test_open_requests_have_a_limit_together(app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    serving_app = sys.modules["flows.serving_app"]
    monkeypatch.setattr(serving_app, "MAX_OPEN_BYTES", 150)
    monkeypatch.setattr(serving_app, "_n_open_bytes", 90)
    assert refusal_of(app, HEADERS, make_body(80))[0] == 503
    assert ask(app, HEADERS, [make_body(60)])[0] == [200]
    assert serving_app._n_open_bytes == 90, "a finished request frees its place"
    monkeypatch.setattr(serving_app, "_n_open_bytes", 0)
    monkeypatch.setattr(serving_app, "MAX_OPEN_BYTES", 50)
    assert ask(app, HEADERS, [make_body(80)])[0] == [200], "a single request is always accepted"


def test_one_request_too_many_is_refused_and_those_before_it_are_not(
    app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving_app = sys.modules["flows.serving_app"]
    monkeypatch.setattr(serving_app, "MAX_OPEN_BYTES", 200)
    bodies = [serving_app._Body(None, True, threading.Event()) for _ in range(3)]
    for _ in range(8):
        for body in bodies:
            body._count(10)
    assert [body.refusal for body in bodies] == [None, None, serving_app.TOO_MANY]
    for body in bodies:
        body.close()
    assert serving_app._n_open_bytes == 0


def test_the_model_is_told_of_a_client_that_has_gone(app: Callable[..., Any], model: CountingModel) -> None:
    noticed: list[bool] = []

    def predict(data: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        variables = {variable.name: value for variable, value in copy_context().items()}
        noticed.append(variables["emuedit_client_gone"].wait(10))
        return data

    model.predict = predict  # type: ignore[method-assign]
    parts: list[dict[str, Any]] = [{"type": "http.request", "body": make_body(60)}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/invocations"}
    asyncio.run(app(scope | {"query_string": b"", "headers": HEADERS}, receive, send))
    assert noticed == [True]


@pytest.mark.slow
def test_a_closed_connection_is_noticed_and_an_open_one_is_not(app: Callable[..., Any], model: CountingModel) -> None:
    """Through uvicorn, with a connection that is kept for the next request."""
    noticed, has_begun = list[bool](), threading.Event()

    def predict(data: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        has_begun.set()
        variables = {variable.name: value for variable, value in copy_context().items()}
        noticed.append(variables["emuedit_client_gone"].wait(data["n"][0]))
        return data

    model.predict = predict  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        connection, json_type = http.client.HTTPConnection("127.0.0.1", port, timeout=10), {"Content-Type": "application/json"}
        for _ in range(2):
            connection.request(
                "POST", "/invocations", '{"dataframe_records": [{"n": 0.1}]}', {"Content-Type": "application/json"}
            )
            assert connection.getresponse().read() == b'{"predictions": [{"n": 0.1}]}'
        has_begun.clear()
        connection.request("POST", "/invocations", '{"dataframe_records": [{"n": 20}]}', json_type)
        assert has_begun.wait(10)
        connection.close()
        deadline = time.monotonic() + 10
        while len(noticed) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        server.should_exit = True
        thread.join(10)
    assert noticed == [False, False, True]
