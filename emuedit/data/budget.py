"""Bounds what several threads do at once: the edits, and the pixels in memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emuedit.data.image_io import MAX_PIXELS


class Budget:
    """At most `limit` units in flight, over all threads. First come, first served, so that no large amount waits for ever."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"want a limit of at least one pixel, got {limit}; set another limit")
        self.limit = limit
        self._in_flight = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Units that are in flight now; an amount above the limit counts as the limit."""
        with self._changed:
            return self._in_flight

    @contextmanager
    def reserve(
        self, amount: int, check: Callable[[], None] = lambda: None, wait_s: Callable[[], float | None] = lambda: None
    ) -> Iterator[None]:
        """Wait until the amount fits and it is this thread's turn; it is in flight until the block ends, also by an error.

        More than the limit waits until nothing else is in flight. Do not nest: a thread may then wait for itself. check: called
        during the wait, at least every `wait_s()` seconds (None: only if something changed); its error ends the wait.
        """
        amount, ticket = min(amount, self.limit), object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or self._in_flight + amount > self.limit:
                    self._changed.wait(wait_s())
                    check()
                self._in_flight += amount
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= amount
                self._changed.notify_all()


IN_FLIGHT = Budget(MAX_PIXELS)
"""Pixels of the served model, over all requests of the process: as many as the largest image that is read."""
EDITS = Budget(2)
"""Edits of the served model: one in the network, and one before or after it. Others wait here, where they can give up, not for
the network's lock."""
