"""The GPU slot of a stage with `meta: {gpu: true}`: all workspaces of a Prefect server share its limit GPU_LIMIT."""

import contextlib
import threading
from collections.abc import Iterator

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from emuedit.operations.servers.server_stack import GPU_LIMIT

LEASE_S = 60
"""How long the server keeps a slot whose process is killed, in seconds: the shortest lease that Prefect allows, renewed every
45 s."""
POLL_S = 5.0
"""Seconds between two requests for a slot."""
_LOCKED = 423  # HTTP status if all slots are in use


@contextlib.contextmanager
def gpu_slot(stop: threading.Event) -> Iterator[bool]:
    """Wait for a slot and release it after the block; if the server has no such limit, do not wait.

    Yields False, without a slot, if `stop` is set while it waits. Prefect's own waiting could not be stopped. Raises Prefect's
    errors if the server does not answer.
    """
    with contextlib.ExitStack() as slots:
        has_slot = _occupy(slots)
        while not has_slot and not stop.wait(POLL_S):
            has_slot = _occupy(slots)
        yield has_slot


def _occupy(slots: contextlib.ExitStack) -> bool:
    """Take a slot, which closing `slots` releases. False if all are in use."""
    try:
        slots.enter_context(concurrency(GPU_LIMIT, occupy=1, lease_duration=LEASE_S, max_retries=0))
    except ConcurrencySlotAcquisitionError as error:
        if getattr(getattr(error.__cause__, "response", None), "status_code", None) == _LOCKED:
            return False
        raise
    return True
