"""Progress of long work: a bar on a terminal, plain lines in a log file; never silent for more than ten seconds.

A separate thread reports, so lines appear even during a network call that takes minutes.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

EVERY_S = 10.0
"""Longest silence in a log file, in seconds; EMUEDIT_PROGRESS_SECONDS overrides it."""
_REFRESH_S = 1.0  # of a bar on a terminal
_COUNTED = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_WEIGHTED = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}, {rate_fmt}{postfix}]"
_UNCOUNTED = "{desc}: {n:.0f} {unit}s [{elapsed}, {rate_fmt}{postfix}]"


class Progress:
    """Counts `total` units of work, of which `done` were finished by an earlier run. total None: unknown; 0: nothing is counted.

        with Progress("pairs", total=1649, unit="pair") as progress:
            progress.advance(96)

    Thread-safe. Amounts may be fractions of a unit. only_if_long: nothing is reported of work that ends before the second report.
    cost, done_cost: of all units and of those of the earlier run, if units differ in their time; the time left then comes from
    the costs given to `advance`.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        unit: str,
        done: float = 0,
        stream: TextIO | None = None,
        only_if_long: bool = False,
        cost: float | None = None,
        done_cost: float = 0,
    ) -> None:
        self.label, self.total, self.unit, self.cost = label, total, unit, cost
        self._stream = stream or sys.stderr
        self._done = self._first = done
        self._done_cost = self._first_cost = done_cost
        self._note = ""
        self._start, self._end = time.monotonic(), 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._is_shown = not only_if_long
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            bar_format = _UNCOUNTED if total is None else _COUNTED if cost is None else _WEIGHTED
            delay_s = _REFRESH_S if only_if_long else 0
            self._bar = tqdm(
                total=total, desc=label, unit=unit, initial=done, file=self._stream, bar_format=bar_format, delay=delay_s
            )
        self._thread = threading.Thread(target=self._report_regularly, name=f"progress of {label}", daemon=True)

    def __enter__(self) -> "Progress":
        if self._is_shown:
            self._report()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end = time.monotonic()
        self._stop.set()
        self._thread.join()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
        if self._bar is None and kind is None and self.total != 0 and self._is_shown:
            self._report()

    def advance(self, amount: float = 1, note: str | None = None, cost: float = 0) -> None:
        """Count finished work; `note` is shown after the counts from now on."""
        with self._lock:
            self._done += amount
            self._done_cost += cost
            self._note = self._note if note is None else note

    def set_done(self, done: float) -> None:
        """Set the finished work, where `advance` counted an estimate."""
        with self._lock:
            self._done = done

    def set_total(self, total: float | None) -> None:
        """Set the units of work, once they are known."""
        with self._lock:
            self.total = total
            if self._bar is not None:
                self._bar.total, self._bar.bar_format = total, _UNCOUNTED if total is None else _COUNTED

    @property
    def seconds(self) -> float:
        """Seconds since the start, or from the start to the end."""
        return (self._end or time.monotonic()) - self._start

    def describe(self) -> str:
        """The current state in one line: counts, share, rate and time left; of an unknown total no share and no time left."""
        with self._lock:
            done, note = self._done, self._note
        seconds = self.seconds
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        if self.total is None:
            parts = [f"{self.label}: {done:.0f} {self.unit}s"]
            if rate > 0 and not self._end:
                parts.append(f"{rate:.3g} {self.unit}s/s")
            if not self._end:
                parts.append(f"{format_duration(seconds)} so far")
            return ", ".join(parts + ([note] if note else []))
        if not self.total:
            return f"{self.label}, {format_duration(seconds)} so far" if seconds >= 1 else f"{self.label} ..."
        parts = [f"{self.label}: {done:.0f}/{self.total:.0f} {self.unit}s, {done / self.total:.0%}"]
        if rate > 0 and done < self.total:
            left = self._time_left() or f"{format_duration((self.total - done) / rate)} left"
            parts += [f"{rate:.3g} {self.unit}s/s", left]
        elif done < self.total:
            parts.append(f"{format_duration(seconds)} so far")
        return ", ".join(parts + ([note] if note else []))

    def _time_left(self) -> str:
        """By the costs, such as '2.5 h left'; empty without costs, and before anything is finished."""
        with self._lock:
            done, first = self._done_cost, self._first_cost
        if self.cost is None or done <= first:
            return ""
        return f"{format_duration(max(0.0, self.cost - done) * self.seconds / (done - first))} left"

    def _report_regularly(self) -> None:
        interval_s = _REFRESH_S if self._bar is not None else report_interval_s()
        while not self._stop.wait(interval_s):
            self._report()

    def _report(self) -> None:
        self._is_shown = True
        if self._bar is None:
            print(self.describe(), file=self._stream, flush=True)
            return
        left = self._time_left()
        with self._lock:
            self._bar.n, self._bar.delay = self._done, 0
            if postfix := ", ".join(filter(None, (left, self._note))):
                self._bar.set_postfix_str(postfix, refresh=False)
            self._bar.refresh()


@contextmanager
def waiting(label: str, stream: TextIO | None = None) -> Iterator[None]:
    """Print the label of a wait (loading models, opening a server), repeated every ten seconds, without a count."""
    with Progress(label, total=0, unit="", stream=stream):
        yield


def report_interval_s() -> float:
    """Seconds between progress lines in a log file."""
    return float(os.environ.get("EMUEDIT_PROGRESS_SECONDS", EVERY_S))


def format_duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
