"""MLflow's scoring server, with the time at which each request arrived and a limit on its size.

MLflow answers 504 at a request's time limit, but its thread goes on. `flows.pyfunc_model` ends such a request by this time, which
includes the wait for a thread. Nothing of emuedit is imported here: the model brings the code with which it was registered.
"""

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from mlflow.pyfunc.scoring_server.app import app as scoring_server

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ARRIVAL_S: ContextVar[float] = ContextVar("emuedit_arrival_s")
"""Arrival of the request on the clock of `time.monotonic`; MLflow copies the context to the request's thread."""
MAX_BODY_BYTES = 2**28 + 2**20
"""Maximum size of a request: the largest image that the model reads, 2^26 pixels, has 2^28 bytes as raw RGB in base64."""
_TOO_LARGE = {
    "error_code": "REQUEST_LIMIT_EXCEEDED",
    "message": f"want a request of at most {MAX_BODY_BYTES} bytes, got more; send fewer rows, or compressed or smaller images",
}


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The server as an ASGI application. It answers a request above MAX_BODY_BYTES with status 413, and keeps no more of it."""
    ARRIVAL_S.set(time.monotonic())
    if int(dict(scope.get("headers", ())).get(b"content-length", 0)) > MAX_BODY_BYTES:
        await _refuse(send)
        return
    n_bytes, is_answered = 0, False  # a request in chunks does not announce its size

    async def receive_part() -> Any:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        return message if n_bytes <= MAX_BODY_BYTES else {"type": "http.disconnect"}

    async def send_part(message: Any) -> None:
        nonlocal is_answered
        if is_answered or n_bytes <= MAX_BODY_BYTES:
            is_answered = True
            await send(message)

    try:
        await scoring_server(scope, receive_part, send_part)
    except Exception:
        if n_bytes <= MAX_BODY_BYTES:
            raise
    if n_bytes > MAX_BODY_BYTES and not is_answered:
        await _refuse(send)


async def _refuse(send: Send) -> None:
    """Answer with status 413. uvicorn discards what still arrives: a client that sends it all gets the answer, not an error."""
    body = json.dumps(_TOO_LARGE).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
