import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from emuedit import progress
from emuedit.progress import EVERY_S, Progress, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=fake.monotonic))
    return fake


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in ten seconds"
        time.sleep(0.005)


def progress_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("progress of")]


@pytest.mark.slow
def test_a_log_file_gets_a_line_at_the_start_one_every_interval_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.05")
    stream = io.StringIO()
    with Progress("pairs", 1649, "pair", stream=stream) as running:
        assert stream.getvalue().startswith("pairs: 0/1649 pairs, 0%"), "the first line comes at once"
        wait_for(lambda: stream.getvalue().count("\n") >= 4)  # also while nothing is finished
        running.advance(96)
        wait_for(lambda: "pairs: 96/1649 pairs, 6%, " in stream.getvalue())
        running.advance(1649 - 96)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "pairs: 1649/1649 pairs, 100%"
    assert "\r" not in stream.getvalue()


def test_the_interval_is_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMUEDIT_PROGRESS_SECONDS", raising=False)
    intervals: list[float] = []
    running = Progress("pairs", 10, "pair", stream=io.StringIO())

    def wait(seconds: float) -> bool:
        intervals.append(seconds)
        return len(intervals) == 3  # whether to stop

    monkeypatch.setattr(running, "_stop", SimpleNamespace(wait=wait))
    running._report_regularly()
    assert intervals == [EVERY_S] * 3
    assert EVERY_S <= 10


def test_a_line_has_count_share_rate_and_the_time_left(clock: Clock) -> None:
    running = Progress("pairs", 1649, "pair", stream=io.StringIO())
    clock.now += 4
    assert running.describe() == "pairs: 0/1649 pairs, 0%, 4 s so far"
    clock.now += 56
    running.advance(96)
    assert running.describe() == "pairs: 96/1649 pairs, 6%, 1.6 pairs/s, 16 min left"
    running.advance(0.5, note="3 dropped")
    assert running.describe() == "pairs: 96/1649 pairs, 6%, 1.61 pairs/s, 16 min left, 3 dropped"
    running.advance(1503.5)
    assert running.describe() == "pairs: 1600/1649 pairs, 97%, 26.7 pairs/s, 2 s left, 3 dropped"
    running.advance(49)
    assert running.describe() == "pairs: 1649/1649 pairs, 100%, 3 dropped"


def test_work_of_an_earlier_run_counts_as_done_but_not_for_the_rate(clock: Clock) -> None:
    running = Progress("pairs", 100, "pair", done=60, stream=io.StringIO())
    clock.now += 10
    assert running.describe() == "pairs: 60/100 pairs, 60%, 10 s so far"
    running.advance(20)
    assert running.describe() == "pairs: 80/100 pairs, 80%, 2 pairs/s, 10 s left"


def test_the_time_left_is_that_of_the_costs(clock: Clock) -> None:
    """Pairs of own images come first and cost a twentieth: after half of the pairs, as much again seemed to be left."""
    running = Progress("pairs", 200, "pair", done=20, stream=io.StringIO(), cost=2100, done_cost=20)
    clock.now += 10
    assert running.describe() == "pairs: 20/200 pairs, 10%, 10 s so far"
    running.advance(80, cost=80)
    assert running.describe() == "pairs: 100/200 pairs, 50%, 8 pairs/s, 4 min left"
    clock.now += 125
    running.advance(50, cost=1000, note="3 dropped")
    assert running.describe() == "pairs: 150/200 pairs, 75%, 0.963 pairs/s, 2 min left, 3 dropped"
    running.advance(50, cost=1000)
    assert running.describe() == "pairs: 200/200 pairs, 100%, 3 dropped"


def test_a_bar_of_work_with_costs_shows_their_time_left(clock: Clock) -> None:
    terminal = Terminal()
    with Progress("pairs", 200, "pair", stream=terminal, cost=2100) as running:
        running.advance(100, cost=100)
        clock.now += 10
        running._report()
    assert "3 min left" in terminal.getvalue()
    assert "<" not in terminal.getvalue(), "not the time left by the count"


def test_work_of_unknown_length_has_neither_share_nor_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("captions", None, "row", stream=stream) as running:
        clock.now += 20
        assert running.describe() == "captions: 0 rows, 20 s so far"
        running.advance(40, note="3 dropped")
        assert running.describe() == "captions: 40 rows, 2 rows/s, 20 s so far, 3 dropped"
    assert stream.getvalue().splitlines()[-1] == "captions: 40 rows, 3 dropped"
    terminal = Terminal()
    with Progress("captions", None, "row", stream=terminal) as running:
        running.advance(40)
    assert "captions: " in terminal.getvalue()
    assert "%" not in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (12600, "3.5 h")])
def test_durations_have_the_unit_that_people_would_use(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text


@pytest.mark.slow
def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress("pairs", 200, "pair", done=50, stream=stream) as running:
        running.advance(50, note="3 dropped")
        wait_for(lambda: "100/200" in stream.getvalue())  # refreshed by itself, within a second
    text = stream.getvalue()
    assert text.count("\r") >= 2
    assert "pairs:  25%|" in text
    assert "pairs:  50%|" in text
    assert "3 dropped" in text
    assert text.endswith("\n")


@pytest.mark.slow
@pytest.mark.parametrize("stream_kind", [io.StringIO, Terminal])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_open_after_an_error(
    stream_kind: type[io.StringIO], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.05")
    monkeypatch.setattr(progress, "_REFRESH_S", 0.05)
    stream = stream_kind()

    def fail() -> None:
        with Progress("pairs", 200, "pair", stream=stream) as running:
            running.advance(50)
            assert len(progress_threads()) == 1
            raise error

    with pytest.raises(error):
        fail()
    assert not progress_threads()
    assert not getattr(tqdm, "_instances", ())
    assert "100%" not in stream.getvalue(), "what was not finished is not reported as finished"
    text = stream.getvalue()
    time.sleep(0.2)
    assert stream.getvalue() == text, "nothing is written afterwards"
    assert text.endswith("\n")


def test_waiting_says_what_for_without_a_count(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.05")
    stream = io.StringIO()
    with waiting("load models", stream):
        clock.now += 20
        wait_for(lambda: "load models, 20 s so far\n" in stream.getvalue())
    assert all(line.startswith("load models") for line in stream.getvalue().splitlines())
    assert "/" not in stream.getvalue()
    assert not progress_threads()


def test_advancing_from_several_threads_counts_everything() -> None:
    with Progress("pairs", 8000, "pair", stream=io.StringIO()) as running:
        threads = [threading.Thread(target=lambda: [running.advance() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert running.describe().startswith("pairs: 8000/8000 pairs, 100%")


@pytest.mark.slow
def test_lines_reach_a_pipe_while_the_main_thread_waits_for_long() -> None:
    code = "import time\nfrom emuedit.progress import Progress\nwith Progress('work', 3, 'step'): time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ | {"EMUEDIT_PROGRESS_SECONDS": "0.1"}
    )
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(4)]
    finally:
        process.kill()
        process.communicate()
    assert all(line.startswith("work: 0/3 steps, 0%, ") for line in lines)


@pytest.mark.parametrize("stream_kind", [io.StringIO, Terminal])
def test_short_work_may_be_silent(stream_kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_kind()
    with Progress("hash", 5, "file", stream=stream, only_if_long=True) as running:
        running.advance(5)
    assert stream.getvalue() == ""
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.05")
    monkeypatch.setattr(progress, "_REFRESH_S", 0.05)
    with Progress("hash", None, "file", stream=stream, only_if_long=True) as running:
        running.set_total(5)
        running.advance(2)
        wait_for(lambda: "2/5" in stream.getvalue())
    assert stream.getvalue().endswith("\n")
