"""A stage runs to its end even if its output cannot be shown."""

import errno
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from flows import process_guard, run_stage
from flows.run_stage import StageCall, StageError

MORE_THAN_A_PIPE = 70_000
"""Bytes, of which a pipe has room for 65,536."""
PRINTS_MUCH = f"""
import sys
for stream in (sys.stdout, sys.stderr):
    for number in range({MORE_THAN_A_PIPE} // 100):
        print("x" * 99, file=stream, flush=True)
sys.exit("the reason")
"""


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Ascii(io.StringIO):
    def write(self, text: str) -> int:
        raise UnicodeEncodeError("ascii", text, 0, 1, "ordinal not in range(128)")


@pytest.mark.parametrize("stream", [FullDisk(), Ascii(), None])
def test_a_stage_whose_output_cannot_be_shown_runs_to_its_end(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = process_guard.command([sys.executable, "-S", "-c", PRINTS_MUCH], timeout_s=60.0)
    monkeypatch.setattr(process_guard, "command", lambda *_: command)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(StageError, match=r"stage captions failed with exit status 1:\n(x{99}\n){14}the reason$"):
        run_stage.run(StageCall("captions", Path.cwd()), threading.Event())
