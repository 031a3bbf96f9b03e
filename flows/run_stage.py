"""Run one stage through DVC, under the process guard; show its output, and keep its end for error messages."""

import codecs
import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from emuedit.failures import FailureKind
from emuedit.progress import format_duration, report_interval_s
from flows import process_guard
from flows.failure_kinds import classify

_BUSY_STATUS = 255  # exit status of DVC if another process holds a lock, but also for other failures, so the text is checked too
_TAIL_BYTES = 20_000  # of output to keep
_MARGIN_S = 0.5  # for progress lines that come late
_DVC_HINTS = ("Generating lock file", "Updating lock file", "Running stage ", "To track the changes", "git add ",
              "To enable auto staging", "dvc config core.autostage", "Use `dvc push`")  # fmt: skip
"""Starts of lines that DVC prints after every stage, which say nothing to somebody who runs a flow."""


class StageError(RuntimeError):
    """Raised if a stage failed, exceeded its time limit or was stopped. The first line of the text gives the reason."""

    def __init__(self, message: str, kind: FailureKind = FailureKind.OTHER) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_retried = False
        """Whether the flow runs the stage again, which it decides by the number of failures of this kind."""


class BusyError(StageError):
    """Raised if another DVC process uses the same outputs."""


class StageStoppedError(StageError):
    """Raised if a stage was stopped, or was to be stopped before it began."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"stage {stage} was stopped")


@dataclass(frozen=True)
class StageCall:
    """One stage to run, and how."""

    name: str
    root: Path
    timeout_s: float | None = None
    """Time limit in seconds; None: no limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Additional variables of the stage."""
    force: bool = False
    """Whether to run it even if it is up to date."""


def run(call: StageCall, stop: threading.Event) -> float:
    """Run `dvc repro --single-item` for one stage and return its seconds.

    All its processes are killed when `stop` is set or this process dies; later output is not shown. Raises StageStoppedError
    after `stop`, BusyError if another DVC process uses its files, and StageError with the end of its output if it fails.
    """
    force = ["--force"] if call.force else []
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *force, call.name]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    start = time.monotonic()
    with _echo_output(call.name, stop) as (sink, tail), _echo_without_hints(stop) as stdout:
        child = subprocess.Popen(
            process_guard.command(dvc, call.timeout_s),
            cwd=call.root,
            stdout=stdout,
            stderr=sink,
            env={**os.environ, **_terminal_width(), **call.environment, "PATH": path},
        )
        try:
            while child.poll() is None:
                if stop.wait(0.05):
                    child.terminate()
                    child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        if child.returncode == -signal.SIGKILL:
            process_guard.end_guarded(child.pid)
    output = bytes(tail).decode(errors="replace")
    if stop.is_set():
        raise StageStoppedError(call.name)
    if child.returncode == _BUSY_STATUS and "is busy" in output:
        raise BusyError(f"another DVC process uses the files of stage {call.name}:\n{_last_lines(output)}")
    if child.returncode != 0:
        kind = classify(output)
        reason = _describe_failure(child.returncode, call.timeout_s)
        raise StageError(f"stage {call.name} {reason}:\n{_last_lines(output)}", kind)
    return time.monotonic() - start


def _describe_failure(status: int, timeout_s: float | None) -> str:
    if status == process_guard.TIMED_OUT:
        return f"exceeded its time limit of {timeout_s:g} s"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with exit status {status}"


@contextlib.contextmanager
def _echo_output(stage: str, stop: threading.Event) -> Iterator[tuple[int, bytearray]]:
    """Yield a file descriptor that is copied to our stderr, and a buffer with its last bytes.

    It is a terminal if our stderr is one, so that progress bars work. After `stop`, only the buffer is filled. A stage that is
    silent for longer than its progress lines, as while it imports libraries, gets a line of ours.
    """
    tail = bytearray()
    start, silence_s = time.monotonic(), report_interval_s() + _MARGIN_S
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    source, sink = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        mode = termios.tcgetattr(sink)
        mode[1] &= ~termios.OPOST  # unchanged bytes
        termios.tcsetattr(sink, termios.TCSANOW, mode)
        termios.tcsetwinsize(sink, termios.tcgetwinsize(sys.stderr.fileno()))

    def copy() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with contextlib.suppress(OSError):  # a terminal whose last writer has exited
            while True:
                while not select.select([source], [], [], silence_s)[0]:
                    if not stop.is_set():
                        _show(f"{stage}: running, {format_duration(time.monotonic() - start)} so far\n", sys.stderr)
                if not (chunk := os.read(source, 65536)):
                    break
                if not stop.is_set():
                    _show(decoder.decode(chunk), sys.stderr)
                tail.extend(chunk)
                del tail[:-_TAIL_BYTES]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield sink, tail
    finally:
        os.close(sink)
        reader.join(2.0)
        os.close(source)


@contextlib.contextmanager
def _echo_without_hints(stop: threading.Event) -> Iterator[int]:
    """Yield a file descriptor whose lines are copied to our stdout, without blank lines and `_DVC_HINTS`; not after `stop`."""
    source, sink = os.pipe()

    def copy() -> None:
        with os.fdopen(source, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                text = line.strip()
                if text and not text.startswith(_DVC_HINTS) and not stop.is_set():
                    _show(f"{line.rstrip()}\n", sys.stdout)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield sink
    finally:
        os.close(sink)
        reader.join(2.0)


def _show(text: str, stream: TextIO | None) -> None:
    """Write to our output. Its errors are ignored: without a reader, the stage would wait for ever, or die of a closed pipe.

    stream: None, as Python has it, if our caller has closed it; nothing is shown then.
    """
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # such as a full disk, a closed terminal, an encoding without a character
        stream.write(text)
        stream.flush()


def _terminal_width() -> dict[str, str]:
    """The width for progress bars, which read it from the environment if they do not write to a terminal."""
    return {"COLUMNS": str(shutil.get_terminal_size((100, 24)).columns)}


def _last_lines(output: str, count: int = 15) -> str:
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in output.splitlines()]
    return "\n".join([line for line in lines if line][-count:])
