"""A retrain that is stopped or of which any process is killed leaves no process behind, and says in one line how to go on."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.flows.conftest import COMPLETE_DATABASE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(320),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes that leave the group cannot be followed"),
]
MARK = "EMUEDIT_TEST_OF_STOPPING"
# A stage like ours: it explains SIGTERM in one line, and has a worker that would outlive it.
STAGE = """
import signal, subprocess, sys, time
from pathlib import Path

def stop(number, frame):
    print("slow: stopped; the same command resumes", file=sys.stderr, flush=True)
    sys.exit(128 + number)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "worker"])
Path("started").write_text("")
time.sleep(300)
"""
# A stand-in for Prefect's server, whose imports take ten seconds of a core: it passes all on to one that runs already.
FORWARDER = """
import asyncio, os, signal, sys
from urllib.parse import urlsplit

TARGET = urlsplit(os.environ["EMUEDIT_TEST_SERVER"])

async def copy(source, sink):
    while content := await source.read(65536):
        sink.write(content)
        await sink.drain()
    sink.close()

async def forward(source, sink):
    target_source, target_sink = await asyncio.open_connection(TARGET.hostname, TARGET.port)
    await asyncio.gather(copy(source, target_sink), copy(target_source, sink))

async def serve(port):
    async with await asyncio.start_server(forward, "127.0.0.1", port) as server:
        await server.serve_forever()

signal.signal(signal.SIGINT, signal.SIG_DFL)
asyncio.run(serve(int(sys.argv[sys.argv.index("--port") + 1])))
"""
# The flow waits ten seconds before it tries a stage again; a module of this name is imported by every process.
SHORT_RETRY_DELAYS = """
import sys

if "flows.flow_process" in sys.orig_argv:
    from flows import failure_kinds

    failure_kinds.RETRY_DELAYS_S[:] = [0.1]
"""
LIMIT_S = 5.0
START_S = 250.0  # of Prefect's server for the first time, on busy cores


def marked_processes(mark: str) -> dict[int, str]:
    """Process id -> command line of every live process that has the mark in its environment."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0") and state not in "ZX":
                processes[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, IndexError):  # of another user, or ended by now
            continue
    return processes


def obey_signals() -> None:
    """The tests themselves may run under nohup or in the background of a shell, which ignore signals, as would their children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Retrain:
    """A real `retrain` in a session without a terminal, in the middle of a stage that would run for minutes."""

    def __init__(self, root: Path, prefix: tuple[str, ...], variables: dict[str, str]) -> None:
        self.mark = str(root)
        self.log = root / "log"
        environment = os.environ | {MARK: self.mark} | variables
        command = [*prefix, sys.executable, "-m", "flows.retrain", "--no-register"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                preexec_fn=obey_signals,
            )  # fmt: skip

    def wait_for_stage(self, started: Path) -> None:
        until = time.monotonic() + START_S
        while not started.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def find(self, pattern: str) -> int:
        """The process whose command line matches."""
        (match,) = [process for process, command in marked_processes(self.mark).items() if re.search(pattern, command)]
        return match

    def remaining(self) -> dict[int, str]:
        """Processes that are left when the limit is over, or none as soon as there are none."""
        until = time.monotonic() + LIMIT_S
        while (left := marked_processes(self.mark)) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.05)
        return left

    def close(self) -> None:
        for process in marked_processes(self.mark):
            os.kill(process, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


StartRetrain = Callable[..., Retrain]


@pytest.fixture
def start_retrain(project: Path) -> Iterator[StartRetrain]:
    """Starts `retrain` with a prefix of its command line and variables of its environment, and returns when its stage runs.

    It goes on without MLflow, as in a workspace that was moved, unless `with_mlflow`: its import takes four seconds of a core.
    """
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        database.execute("CREATE TABLE experiments AS SELECT 1 AS experiment_id, '/elsewhere/mlruns/1' AS artifact_location")
        database.commit()
    (project / "stage.py").write_text(STAGE)
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: python stage.py\n    outs: [never]\n")
    started: list[Retrain] = []

    def start(*prefix: str, **variables: str) -> Retrain:
        started.append(Retrain(project, prefix, variables))
        started[-1].wait_for_stage(project / "started")
        return started[-1]

    yield start
    for retrain in started:
        retrain.close()


@pytest.fixture
def with_mlflow(start_retrain: StartRetrain, project: Path, empty_store: Path) -> None:
    """The retrain has a run in MLflow, which it closes when it is stopped."""
    shutil.copy(empty_store, project / "mlflow.db")


FLOW = {"retrain": r"-m flows\.retrain", "flow": r"-m flows\.flow_process"}
STAGE_PROCESSES = {
    "guard": r"process_guard\.py .* dvc ",
    "dvc": r"^\S*python\S* -m dvc ",
    "stage": r"^\S*python\S* stage\.py",
}
SERVER = {"guard of the server": r"process_guard\.py .*uvicorn", "server": r"^\S*python\S* -m uvicorn "}


def check_kill(retrain: Retrain, pattern: str) -> None:
    os.kill(retrain.find(pattern), signal.SIGKILL)
    assert retrain.remaining() == {}
    output = retrain.log.read_text()
    assert output.splitlines()[-1].startswith("retrain: ")
    assert output.splitlines()[-1].endswith("; the same command resumes")
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_killed_stage_is_tried_once_more_and_then_no_process_is_left(
    start_retrain: StartRetrain, server_url: str, project: Path
) -> None:
    """The kernel kills what takes too much memory: once more, with half the batch."""
    (project / "sitecustomize.py").write_text(SHORT_RETRY_DELAYS)
    retrain = start_retrain(PREFECT_API_URL=server_url, PYTHONPATH=f"{project}{os.pathsep}{os.environ['PYTHONPATH']}")
    (project / "started").unlink()
    os.kill(retrain.find(STAGE_PROCESSES["stage"]), signal.SIGKILL)
    retrain.wait_for_stage(project / "started")
    assert "(memory); retrying, with half the batch if it has one" in retrain.log.read_text()
    check_kill(retrain, STAGE_PROCESSES["stage"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("guard", marks=pytest.mark.long), "dvc"])
def test_no_process_is_left_when_one_above_a_stage_is_killed(start_retrain: StartRetrain, server_url: str, name: str) -> None:
    check_kill(start_retrain(PREFECT_API_URL=server_url), STAGE_PROCESSES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["retrain", "server", *(pytest.param(name, marks=pytest.mark.long) for name in ("flow", "guard of the server"))]
)
def test_no_process_is_left_when_one_is_killed_beside_a_local_server(
    start_retrain: StartRetrain, server_url: str, project: Path, name: str
) -> None:
    (project / "uvicorn.py").write_text(FORWARDER)  # which `python -m uvicorn` finds in the working folder
    retrain = start_retrain(EMUEDIT_TEST_SERVER=server_url)
    for pattern in (FLOW | STAGE_PROCESSES | SERVER).values():
        retrain.find(pattern)
    check_kill(retrain, (FLOW | SERVER)[name])


def check_signal(retrain: Retrain, number: signal.Signals) -> None:
    retrain.process.send_signal(number)
    assert retrain.remaining() == {}
    assert retrain.process.wait(1) == 128 + number
    before, _, after = retrain.log.read_text().partition("> python stage.py\n")
    reason = "ctrl-c" if number == signal.SIGINT else number.name
    assert after.strip().splitlines() == [f"retrain: stopped by {reason}; the same command resumes"]
    assert "Traceback" not in before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_is_named_with_its_exit_status(number: signal.Signals, tmp_path: Path) -> None:
    """As `console_main` reacts; that nothing is left is tested with SIGHUP, below."""
    program = "import time; from flows import retrain; retrain._retrain = lambda _: print('ready', flush=True) or time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}; raise SystemExit(retrain.console_main())"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=obey_signals,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    reason = "ctrl-c" if number == signal.SIGINT else number.name
    assert process.communicate()[1].strip() == f"retrain: stopped by {reason}; the same command resumes"
    assert process.returncode == 128 + number


@pytest.mark.long
def test_no_process_is_left_after_a_signal(start_retrain: StartRetrain, server_url: str) -> None:
    check_signal(start_retrain(PREFECT_API_URL=server_url), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.usefixtures("with_mlflow", "prepared_home")
def test_no_local_server_is_left_after_a_closed_terminal(start_retrain: StartRetrain) -> None:
    """With Prefect's own server, and a run in MLflow."""
    check_signal(start_retrain(**COMPLETE_DATABASE), signal.SIGHUP)


@pytest.mark.long
def test_nohup_survives_a_closed_terminal_and_still_stops(start_retrain: StartRetrain, server_url: str) -> None:
    """Under nohup SIGHUP is ignored; a shell that starts a job in the background makes it ignore SIGINT too, which stops it."""
    retrain = start_retrain("sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", PREFECT_API_URL=server_url)
    retrain.process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert retrain.process.poll() is None
    check_signal(retrain, signal.SIGINT)


@pytest.mark.long
def test_retrain_ends_with_the_uv_that_started_it(start_retrain: StartRetrain, server_url: str, tmp_path: Path) -> None:
    """A stand-in called `uv` runs its arguments; a killed uv forwards nothing."""
    (tmp_path / "uv").symlink_to("/bin/sh")
    retrain = start_retrain(str(tmp_path / "uv"), "-c", '"$@"; exit 0', "uv", PREFECT_API_URL=server_url)
    retrain.process.kill()
    assert retrain.remaining() == {}
    assert retrain.log.read_text().splitlines()[-1] == "retrain: stopped by SIGTERM; the same command resumes"
