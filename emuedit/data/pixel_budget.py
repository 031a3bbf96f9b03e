"""Bounds the pixels that several threads process at once, and with them the memory of the process."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from emuedit.data.image_io import MAX_PIXELS


class PixelBudget:
    """At most `limit` pixels in flight, over all threads. First come, first served, so that no large image waits for ever."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"want a limit of at least one pixel, got {limit}; set another limit")
        self.limit = limit
        self._in_flight = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Pixels that are in flight now; an image above the limit counts as the limit."""
        with self._changed:
            return self._in_flight

    @contextmanager
    def reserve(self, n_pixels: int) -> Iterator[None]:
        """Wait until n_pixels fit and it is this thread's turn; they are in flight until the block ends, also by an error.

        More than the limit wait until nothing else is in flight. Do not nest: a thread may then wait for itself.
        """
        n_pixels, ticket = min(n_pixels, self.limit), object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket and self._in_flight + n_pixels <= self.limit)
                self._in_flight += n_pixels
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._in_flight -= n_pixels
                self._changed.notify_all()


IN_FLIGHT = PixelBudget(MAX_PIXELS)
"""Of the served model, over all requests of the process: as many pixels as the largest image that is read."""
