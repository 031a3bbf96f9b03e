"""Runs one stage through DVC, under the guard, with its output on the screen and the end of it kept for the error message."""

import codecs
import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from flows import process_guard

_BUSY = 255  # exit status of a dvc that met another; also that of any failure, so its words count too
_TAIL = 20_000  # bytes of output that are kept


class StageError(RuntimeError):
    """Raised for a stage that failed, ran out of time or was stopped."""


class BusyError(StageError):
    """Raised when another dvc works on the same outputs."""


def run(
    stage: str, root: Path, stop: threading.Event, timeout_s: float | None, extra: Mapping[str, str], force: bool = False
) -> float:
    """`dvc repro --single-item` for one stage; returns its seconds. All of it ends when `stop` is set or this process dies.

    Raises BusyError when another dvc holds its files, StageError with the end of its output when it fails.
    """
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), stage]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    began = time.monotonic()
    with _echo() as (sink, tail):
        child = subprocess.Popen(
            process_guard.command(dvc, timeout_s), cwd=root, stderr=sink, env={**os.environ, **_width(), **extra, "PATH": path}
        )
        try:
            while child.poll() is None:
                if stop.wait(0.05):
                    child.send_signal(signal.SIGINT)
                    child.wait()
        except BaseException:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
    said = bytes(tail).decode(errors="replace")
    if stop.is_set():
        raise StageError(f"stage {stage} was stopped")
    if child.returncode == _BUSY and "is busy" in said:
        raise BusyError(f"another dvc works on the files of stage {stage}:\n{_last_lines(said)}")
    if child.returncode != 0:
        why = {process_guard.TIMED_OUT: f"ran out of its {timeout_s} s"}.get(
            child.returncode, f"failed with exit status {child.returncode}"
        )
        raise StageError(f"stage {stage} {why}:\n{_last_lines(said)}")
    return time.monotonic() - began


@contextlib.contextmanager
def _echo() -> Iterator[tuple[int, bytearray]]:
    """A file descriptor whose bytes go to our stderr, and their end into a buffer. A terminal if ours is one, for the bars."""
    tail = bytearray()
    source, sink = pty.openpty() if sys.stderr.isatty() else os.pipe()
    if sys.stderr.isatty():
        mode = termios.tcgetattr(sink)
        mode[1] &= ~termios.OPOST  # bytes as they are
        termios.tcsetattr(sink, termios.TCSANOW, mode)
        termios.tcsetwinsize(sink, termios.tcgetwinsize(sys.stderr.fileno()))

    def copy() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with contextlib.suppress(OSError):  # a terminal whose last writer is gone
            while found := os.read(source, 65536):
                sys.stderr.write(decoder.decode(found))
                sys.stderr.flush()
                tail.extend(found)
                del tail[:-_TAIL]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield sink, tail
    finally:
        os.close(sink)
        reader.join(2.0)
        os.close(source)


def _width() -> dict[str, str]:
    """Bars ask the environment when they write to no terminal."""
    return {"COLUMNS": str(shutil.get_terminal_size((100, 24)).columns)}


def _last_lines(said: str, count: int = 15) -> str:
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in said.splitlines()]
    return "\n".join([line for line in lines if line][-count:])
