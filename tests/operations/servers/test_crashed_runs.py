"""A schedule on the servers of `up`: its run and the worker are killed, the slot is released, and the run is restarted once."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from emuedit.operations.servers import server_control, server_stack
from emuedit.operations.servers.background_process import read_record
from emuedit.operations.servers.http_probe import ask
from tests.repository import ROOT

PREFECT_YAML = """\
name: small
prefect-version: ">=3.8,<3.9"
deployments:
  - name: minutely
    entrypoint: flow_file.py:work
    schedules:
      - {cron: "* * * * *", timezone: UTC, slug: minutely, active: true}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
    work_pool: {name: local}
"""
FLOW = """\
import threading
import time
from pathlib import Path

from prefect import flow

from flows.gpu_slot import gpu_slot


@flow(name="retrain")  # the automations act on our flows only
def work():
    with gpu_slot(threading.Event()):
        if Path("hang").exists():
            Path("hang").unlink()
            time.sleep(900)
"""
START_S, MINUTE_S, CRASH_S = 300.0, 150.0, 240.0
SLOT_S = 60.0
"""From Crashed, 90 s after the last heartbeat, to free slots; with Prefect's default lease the GPU slot would be kept 300 s."""
PLANNED_S = 330.0
"""Prefect evaluates the events of a run that was planned less than 5 minutes before its start only after 15 minutes."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may enter, so that PostgreSQL runs in it where the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="emuedit-crashed-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def wait_for(find: Callable[[], Any], limit_s: float, event: str) -> Any:
    """The first true answer of `find`; fails the test after `limit_s`."""
    end = time.monotonic() + limit_s
    while not (answer := find()):
        assert time.monotonic() < end, f"{event} did not happen within {limit_s:g} s"
        time.sleep(1)
    return answer


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_scheduled_run_is_crashed_releases_its_slot_and_is_restarted_once(folder: Path) -> None:
    (folder / "prefect.yaml").write_text(PREFECT_YAML)
    (folder / "flow_file.py").write_text(FLOW)
    (folder / "infra/prefect").mkdir(parents=True)
    (folder / "infra/prefect/automations.yaml").write_text((ROOT / "infra/prefect/automations.yaml").read_text())
    data = folder / ".emuedit"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EMUEDIT_STORE": "off"}
    program = str(Path(sys.executable).parent / "emuedit")

    def emuedit(*words: str) -> None:
        process = subprocess.run([program, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr

    def runs() -> dict[str, dict[str, Any]]:
        """The runs of the server, without those that the schedule plans for later."""
        payload = {"limit": 200, "sort": "EXPECTED_START_TIME_ASC"}
        listed = ask(f"{api}/flow_runs/filter", 20, payload, account).json()
        return {run["id"]: run for run in listed if run["state_name"] != "Scheduled" or run["tags"] == []}

    def restarted() -> list[dict[str, Any]]:
        return [run for run in runs().values() if (run["created_by"] or {}).get("type") == "AUTOMATION"]

    def in_state(*names: str) -> list[str]:
        return [run_id for run_id, run in runs().items() if run["state_name"] in names]

    def slots_in_use() -> tuple[int, int]:
        """Slots of the deployment, and of the GPU."""
        limits = [ask(f"{api}/deployments/name/retrain/minutely", 20, account=account).json()["global_concurrency_limit"]]
        limits.append(ask(f"{api}/v2/concurrency_limits/{server_stack.GPU_LIMIT}", 20, account=account).json())
        return limits[0]["active_slots"], limits[1]["active_slots"]

    try:
        emuedit("up", "--port-base", "18700")
        lines = (data / server_control.ENV_FILE).read_text().splitlines()
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        api, account = exports["PREFECT_API_URL"], exports["PREFECT_API_AUTH_STRING"]
        wait_for(lambda: in_state("Completed"), START_S + MINUTE_S, "the first run of the schedule")
        time.sleep(PLANNED_S)
        (folder / "hang").touch()
        wait_for(lambda: not (folder / "hang").exists(), START_S + MINUTE_S, "the run that hangs")
        (first,) = wait_for(lambda: in_state("Running"), START_S, "the state of the run that hangs")
        assert slots_in_use() == (1, 1)
        waiting = wait_for(lambda: in_state("Late", "AwaitingConcurrencySlot"), MINUTE_S, "a second run, which waits")[0]
        worker = read_record(data, "worker")
        assert worker is not None
        processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        assert len(processes) > 1, "want the worker and the process of its run"
        for process in processes:
            process.send_signal(signal.SIGKILL)
        wait_for(lambda: runs()[first]["state_type"] == "CRASHED", CRASH_S, "the change of the killed run to Crashed")
        assert "no heartbeat" in runs()[first]["state"]["message"]
        wait_for(lambda: slots_in_use() == (0, 0), SLOT_S, "the release of the slots")
        wait_for(restarted, 60.0, "the restart of the killed run")
        emuedit("up")
        wait_for(lambda: runs()[waiting]["state_type"] == "COMPLETED", START_S, "the end of the waiting run")
        wait_for(lambda: [run["state_type"] for run in restarted()] == ["COMPLETED"], START_S, "the end of the restarted run")
        assert restarted()[0]["tags"] == [], "want no tag of a schedule, for which it would be restarted again"
        assert runs()[first]["state_type"] == "CRASHED"
    finally:
        emuedit("down")
