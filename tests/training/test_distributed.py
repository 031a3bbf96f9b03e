"""Processes that train together end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from emuedit import crew
def work(crew, folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `nohup ... &`
    crew.together(2, work, sys.argv[1])
"""


def test_members_die_with_their_parent_even_where_interrupts_are_ignored(tmp_path: Path) -> None:
    """Otherwise they train on behind the back of the next run, in the same folder."""
    script, alive = tmp_path / "script.py", tmp_path / "alive"
    script.write_text(SCRIPT)
    alive.mkdir()
    parent = subprocess.Popen([sys.executable, script, alive], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while len(members := [int(file.name) for file in alive.iterdir()]) < 2:
        assert parent.poll() is None, "it ended before its members were there"
        assert time.monotonic() < until, "its members did not start"
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    try:
        while any(Path("/proc", str(one)).exists() for one in members):
            assert time.monotonic() < until, "they outlived their parent"
            time.sleep(0.1)
    finally:
        for one in members:
            if Path("/proc", str(one)).exists():
                os.kill(one, signal.SIGKILL)
