"""MLflow's scoring server, with the time at which each request arrived.

MLflow answers 504 at a request's time limit, but its thread goes on. `flows.pyfunc_model` ends such a request by this time, which
includes the wait for a thread. Nothing of emuedit is imported here: the model brings the code with which it was registered.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from mlflow.pyfunc.scoring_server.app import app as scoring_server

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ARRIVAL_S: ContextVar[float] = ContextVar("emuedit_arrival_s")
"""Arrival of the request on the clock of `time.monotonic`; MLflow copies the context to the request's thread."""


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The server as an ASGI application."""
    ARRIVAL_S.set(time.monotonic())
    await scoring_server(scope, receive, send)
