"""Stop a retrain by one exception on ctrl-c, SIGTERM, SIGHUP and the exit of the `uv` that started it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import NoReturn

_POLL_S = 0.2


class Stopped(BaseException):
    """Raised in the main thread when this process is asked to stop. `reason`: the cause, as text."""

    def __init__(self, reason: str, number: int = signal.SIGTERM) -> None:
        super().__init__(reason)
        self.reason, self.number = reason, number

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as in a shell."""
        return 128 + self.number


def stop_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP raise `Stopped`, once. SIGHUP stays ignored under nohup; SIGINT does not."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def stop(number: int, _frame: object) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # a second one would interrupt the clean-up
        raise Stopped("ctrl-c" if number == signal.SIGINT else signal.Signals(number).name, number)

    for number in numbers:
        signal.signal(number, stop)


def stop_with_uv() -> None:
    """Send SIGTERM to this process when the `uv run` that started it exits, since a killed uv forwards no signal. Linux only."""
    parent = os.getppid()
    if _process_name(parent) != "uv":
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch uv", daemon=True).start()


def _process_name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:  # not Linux, or the process has just exited
        return ""
