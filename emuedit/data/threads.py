"""Work on many items in threads, for functions that release the GIL most of the time, such as the decoders of images."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from emuedit.processes import available_cores

_MAX_THREADS = 8
"""Each of them may hold a decoded image."""
T = TypeVar("T")
R = TypeVar("R")


def thread_pool() -> ThreadPoolExecutor:
    """A pool of one thread per core, at most eight."""
    return ThreadPoolExecutor(min(_MAX_THREADS, available_cores()))


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results in the order of the items, one thread per core and at most eight. An error, or a stop, cancels what waits."""
    pool = thread_pool()
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
