"""MLflow's scoring server, with limits on requests, the time at which each arrived, and a note of clients that have gone.

MLflow answers 504 at a request's time limit, but its thread goes on, as it does when the client closes the connection.
`flows.pyfunc_model` ends such a request: by its arrival, which includes the wait for a thread, and by the note. Nothing of
emuedit is imported here: the model brings the code with which it was registered.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from mlflow.pyfunc.scoring_server.app import app as scoring_server

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ARRIVAL_S: ContextVar[float] = ContextVar("emuedit_arrival_s")
"""Arrival of the request on the clock of `time.monotonic`; MLflow copies the context to the request's thread."""
CLIENT_GONE: ContextVar[threading.Event] = ContextVar("emuedit_client_gone")
"""Set when the client has closed the connection."""
MAX_BODY_BYTES = 2**28 + 2**20
"""Maximum size of a request: the largest image that the model reads, 2^26 pixels, has 2^28 bytes as raw RGB in base64."""
MAX_OPEN_BYTES = 2 * MAX_BODY_BYTES
"""Maximum size of all open requests, whose decoding needs about five times the memory. A single one is always accepted. Ours."""


class Refusal(NamedTuple):
    """An answer without a call of the model, in the form of MLflow's errors."""

    status: int
    error_code: str
    message: str


TOO_LARGE = Refusal(
    413, "REQUEST_LIMIT_EXCEEDED",
    f"want a request of at most {MAX_BODY_BYTES} bytes, got more; send fewer rows, or compressed or smaller images",
)  # fmt: skip
TOO_MANY = Refusal(
    503, "TEMPORARILY_UNAVAILABLE",
    f"want requests of at most {MAX_OPEN_BYTES} bytes at a time, got more, as the server is busy; try again later",
)  # fmt: skip
NO_TYPE = Refusal(415, "BAD_REQUEST", "want the header Content-Type: application/json, got none; add it")
NO_JSON = Refusal(
    400, "MALFORMED_REQUEST",
    "want JSON such as {\"dataframe_records\": [...]}, got a body that starts with another character than {; send the image in "
    "base64, as the value of `image`",
)  # fmt: skip
_n_open_bytes = 0


class _Body:
    """Receives a request for the server, and keeps nothing more of one that is refused."""

    def __init__(self, receive: Receive, is_json: bool, client_gone: threading.Event) -> None:
        self.refusal: Refusal | None = None
        self.is_cut = False
        """Whether the client has gone before it sent everything."""
        self._receive, self._is_json, self._client_gone = receive, is_json, client_gone
        self._n_bytes, self._is_blank = 0, True
        self._disconnect: asyncio.Task[Any] | None = None

    async def receive(self) -> Any:
        """The next part; after the last one, and after a refusal, the message that the client has gone."""
        if self._disconnect is not None:
            return await asyncio.shield(self._disconnect)
        message = await self._receive()
        self.is_cut = message["type"] == "http.disconnect"
        part = message.get("body", b"")
        self._count(len(part))
        if self._is_json and self._is_blank and (start := part.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]):
            self._is_blank = False
            if start != b"{" and self.refusal is None:
                self._refuse(NO_JSON)
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._disconnect = asyncio.create_task(self._wait_for_disconnect())
        return message

    def close(self) -> None:
        """Stop waiting, and free the place of the request's bytes."""
        if self._disconnect is not None:
            self._disconnect.cancel()
        self._count(-self._n_bytes)

    def _count(self, n_bytes: int) -> None:
        """Count bytes of an open request. A refused one gives its place back at once, so that no other is refused for it."""
        global _n_open_bytes
        if self.refusal is not None:
            return
        self._n_bytes += n_bytes
        _n_open_bytes += n_bytes
        if self._n_bytes > MAX_BODY_BYTES:
            self._refuse(TOO_LARGE)
        elif n_bytes > 0 and _n_open_bytes > max(MAX_OPEN_BYTES, self._n_bytes):
            self._refuse(TOO_MANY)

    def _refuse(self, refusal: Refusal) -> None:
        global _n_open_bytes
        _n_open_bytes -= self._n_bytes
        self.refusal, self._n_bytes = refusal, 0

    async def _wait_for_disconnect(self) -> Any:
        message = await self._receive()
        self._client_gone.set()
        return message


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The server as an ASGI application. It answers a request that it refuses itself, and keeps nothing of it."""
    client_gone = threading.Event()
    ARRIVAL_S.set(time.monotonic())
    CLIENT_GONE.set(client_gone)
    headers: Mapping[bytes, bytes] = dict(scope.get("headers", ()))
    if int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES:
        await _refuse(send, TOO_LARGE)
        return
    content_type = headers.get(b"content-type", b"")
    if scope.get("path") == "/invocations" and scope.get("method") == "POST" and not content_type.strip():
        await _refuse(send, NO_TYPE)
        return
    body, is_answered = _Body(receive, content_type.startswith(b"application/json"), client_gone), False

    async def send_part(message: Any) -> None:
        nonlocal is_answered
        if is_answered or body.refusal is None:
            is_answered = True
            await send(message)

    try:
        await scoring_server(scope, body.receive, send_part)
    except Exception:
        if body.refusal is None and not body.is_cut:
            raise
    finally:
        body.close()
    if body.refusal is not None and not is_answered:
        await _refuse(send, body.refusal)


async def _refuse(send: Send, refusal: Refusal) -> None:
    """uvicorn discards what still arrives: a client that sends it all gets the answer, not an error."""
    body = json.dumps({"error_code": refusal.error_code, "message": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
