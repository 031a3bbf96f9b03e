"""Peak memory of a command with all its processes, sampled while it runs. Linux only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from types import TracebackType

import psutil

SAMPLE_S = 0.2


class SessionMemory:
    """Context manager that samples the memory of a command started in a session of its own; `peak_gib` afterwards.

    It is the largest sum of the proportional set sizes (PSS) of all its processes: pages that processes share are counted once,
    also between workers and their fork server. A peak shorter than SAMPLE_S may be missed.
    """

    def __init__(self, running: subprocess.Popen[str]) -> None:
        """`running` was started with `start_new_session=True`."""
        self.peak_gib, self._session = 0.0, running.pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory of a session", daemon=True)

    def __enter__(self) -> SessionMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_gib = max(self.peak_gib, session_pss(self._session) / 2**30)
            self._stop.wait(SAMPLE_S)


def session_pss(session: int) -> int:
    """Bytes of memory of all processes of a session."""
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile
            if os.getsid(process.pid) == session:
                total += process.memory_full_info().pss
    return total
