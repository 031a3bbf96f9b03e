"""Pixels in flight over all threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from emuedit.data.budget import Budget


def start(budget: Budget, n_pixels: int, order: list[int], leave: threading.Event) -> threading.Thread:
    """A thread that reserves pixels, records them and waits; returns when it is in the queue or has them."""

    def work() -> None:
        with budget.reserve(n_pixels):
            order.append(n_pixels)
            leave.wait(10)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(0.1)
    return thread


@pytest.mark.slow
def test_a_large_image_is_not_overtaken_by_small_ones() -> None:
    budget, order, leave = Budget(10), list[int](), threading.Event()
    threads = [start(budget, n_pixels, order, leave) for n_pixels in (6, 8, 1, 2)]
    assert order == [6], "1 and 2 would fit, but 8 was there first"
    assert budget.in_flight == 6
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == [6, 8, 1, 2]
    assert budget.in_flight == 0


@pytest.mark.slow
def test_more_than_the_limit_runs_alone() -> None:
    budget, order, leave = Budget(10), list[int](), threading.Event()
    threads = [start(budget, n_pixels, order, leave) for n_pixels in (1, 99, 1)]
    assert order == [1]
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == [1, 99, 1]


def test_an_error_releases_the_pixels() -> None:
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.reserve(9):
            raise ZeroDivisionError
    assert budget.in_flight == 0


def test_many_threads_never_exceed_the_limit() -> None:
    budget, seen = Budget(10), list[int]()

    def work(n_pixels: int) -> None:
        with budget.reserve(n_pixels):
            seen.append(budget.in_flight)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [number % 13 for number in range(400)]))
    assert len(seen) == 400
    assert max(seen) <= 10


def test_a_limit_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="want a limit of at least one pixel, got 0"):
        Budget(0)
