import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from flows import process_guard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes that leave the group cannot be followed")
STAGE = "import os, time; open('pid.part', 'w').write(str(os.getpid())); os.rename('pid.part', 'pid'); time.sleep(60)"
FLOW = """
import sys, threading
from pathlib import Path
from flows import run_stage
run_stage.run(run_stage.StageCall("slow", Path.cwd()), threading.Event())
"""


def run_guarded(*command: str, timeout_s: float | None = None) -> tuple[int, float]:
    """Exit status and seconds of a command under the guard."""
    start = time.monotonic()
    process = subprocess.run(process_guard.command(command, timeout_s), timeout=20, stderr=subprocess.DEVNULL)
    return process.returncode, time.monotonic() - start


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # it ended before the file was opened, or while it was read
        return False


def read_pid(path: Path, within_s: float = 60) -> int:
    until = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < until, f"no process wrote {path}"
        time.sleep(0.02)
    return int(path.read_text())


def have_ended(*pids: int, within_s: float = 3.0) -> bool:
    until = time.monotonic() + within_s
    while any(map(is_alive, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_exit_status_and_signals_come_through() -> None:
    assert run_guarded("sh", "-c", "exit 0")[0] == 0
    assert run_guarded("sh", "-c", "exit 3")[0] == 3
    assert run_guarded("sh", "-c", "kill -9 $$")[0] == -signal.SIGKILL
    assert run_guarded("sh", "-c", "kill -15 $$")[0] == -signal.SIGTERM
    assert run_guarded("no-such-program")[0] == 127


@pytest.mark.slow
def test_the_time_limit_ends_all(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/a; setsid sleep 60 & echo $! > {tmp_path}/b; sleep 60"
    status, duration_s = run_guarded("sh", "-c", script, timeout_s=1.0)
    assert status == process_guard.TIMED_OUT
    assert duration_s < 5
    assert have_ended(*(int((tmp_path / name).read_text()) for name in "ab"), within_s=0.5)


def test_nothing_is_left_when_the_command_ends(tmp_path: Path) -> None:
    status, _ = run_guarded("sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid; exit 5")
    assert status == 5
    assert have_ended(int((tmp_path / "pid").read_text()), within_s=0.5)


@pytest.mark.slow
def test_a_stubborn_command_is_killed(tmp_path: Path) -> None:
    script = f"import os, signal, time; [signal.signal(number, signal.SIG_IGN) for number in (2, 15)]; {STAGE}"
    guard = subprocess.Popen(process_guard.command([sys.executable, "-c", script]), cwd=tmp_path)
    pid = read_pid(tmp_path / "pid")
    guard.send_signal(signal.SIGINT)
    assert guard.wait(5) == -signal.SIGINT
    assert have_ended(pid, within_s=0.5)


def test_a_guard_whose_parent_died_first_starts_nothing(tmp_path: Path) -> None:
    command = process_guard.command([sys.executable, "-c", STAGE])
    command[command.index("--parent") + 1] = str(2**22 + 1)  # no process has this number
    assert subprocess.run(command, cwd=tmp_path).returncode == -signal.SIGTERM
    assert not (tmp_path / "pid").exists()


@pytest.mark.slow
@pytest.mark.parametrize("event", ["flow killed", "ctrl-c", "flow ended", "dvc killed", "guard killed"])
def test_no_stage_outlives_its_flow(project: Path, event: str) -> None:
    """A real stage under a real dvc: neither signals nor kill -9 of flow, dvc or guard leave a process behind."""
    (project / "stage.py").write_text(STAGE)
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: python stage.py\n    outs: [never]\n")
    number = {"flow killed": signal.SIGKILL, "ctrl-c": signal.SIGINT, "flow ended": signal.SIGTERM}.get(event)
    with (project / "log").open("w") as log:
        hear_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may have it ignored
        command = [sys.executable, "-c", FLOW]
        flow = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=hear_sigint)
    try:
        stage = read_pid(project / "pid")
        dvc = int(Path(f"/proc/{stage}/stat").read_text().rsplit(")", 1)[1].split()[1])
        if b"dvc" not in Path(f"/proc/{dvc}/cmdline").read_bytes():  # a shell between the two
            dvc = int(Path(f"/proc/{dvc}/stat").read_text().rsplit(")", 1)[1].split()[1])
        assert b"repro" in Path(f"/proc/{dvc}/cmdline").read_bytes()
        guard = int(Path(f"/proc/{dvc}/stat").read_text().rsplit(")", 1)[1].split()[1])
        start = time.monotonic()
        if number is None:
            os.kill(guard if event == "guard killed" else dvc, signal.SIGKILL)
        else:
            flow.send_signal(number)
        assert have_ended(stage, dvc), event
        print(f"{event}: all processes ended after {time.monotonic() - start:.2f} s")
        assert flow.wait(5) != 0
    finally:
        flow.kill()
        flow.wait()
