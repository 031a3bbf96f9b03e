"""Runs of flows and of their stages in an MLflow that is lost for a while, or used by several processes."""

import itertools
import time
from pathlib import Path

import pytest

from emuedit.tracking import Tracker, runs
from tests.tracking.fake_client import FakeClient


@pytest.mark.parametrize("is_killed", [False, True])
def test_metrics_of_an_outage_are_sent_when_the_stage_resumes_or_the_flow_ends(
    is_killed: bool, tmp_path: Path, server: FakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(tmp_path, "train")
    tracker.log(0, loss=1.0)
    server.is_down = True
    for step in range(1, 5):
        tracker.log(step, loss=1.0 / (step + 1))
    if is_killed:  # then the lines that wait in memory are lost
        tracker._stream.close()
        server.is_down = False
        tracker = Tracker(tmp_path, "train")
    tracker.log(5, loss=0.1)
    tracker.close()
    server.is_down = False
    assert ("`emuedit sync` sends them" in caplog.text) == (not is_killed)
    if not is_killed:
        (run,) = server.runs.values()
        assert (len(run["metrics"]), run["status"]) == (1, None)
        assert runs.run_id_of(tmp_path / "stats.jsonl") == run["entity"].info.run_id
    (run,) = server.runs.values()
    assert (len(run["metrics"]), run["status"]) == (6, "FINISHED")


@pytest.mark.parametrize("first_has_failed", [False, True])
@pytest.mark.parametrize("first_lost_step", [1, 2])
def test_metrics_of_an_outage_are_sent_if_an_earlier_attempt_closed_the_run(
    first_has_failed: bool, first_lost_step: int, tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(1_000)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    tracker = Tracker(tmp_path, "train")
    tracker.log(0, loss=1.0)
    tracker.close(failed=first_has_failed)
    tracker = Tracker(tmp_path, "train")
    for step in range(1, 4):
        server.is_down = step >= first_lost_step
        tracker.log(step, loss=1.0 / (step + 1))
    (run,) = server.runs.values()
    closed_as = "FAILED" if first_has_failed else "FINISHED"
    assert run["status"] == (closed_as if first_lost_step == 1 else "RUNNING"), "want a run that continues shown as running"
    tracker.close()
    server.is_down = False
    assert len(run["metrics"]) == first_lost_step
    assert runs.run_id_of(tmp_path / "stats.jsonl") in server.runs
    assert (len(server.runs), len(run["metrics"]), run["status"]) == (1, 4, "FINISHED")


def test_the_run_of_a_complete_file_is_found_without_sending_it_again(
    tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(tmp_path, "train") as tracker:
        tracker.log(1, loss=1.0)
    monkeypatch.setattr(server, "log_batch", None)
    assert runs.run_id_of(tmp_path / "stats.jsonl") in server.runs


def test_two_first_runs_at_once_use_one_experiment(server: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process creates the experiment after this one has looked for it."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

    def create_too_late(name: str) -> str:
        if name in server.experiments:
            raise MlflowException(f"Experiment(name={name}) already exists.", error_code=RESOURCE_ALREADY_EXISTS)
        server.experiments.append(name)
        return create_too_late(name)

    monkeypatch.setattr(server, "create_experiment", create_too_late)
    assert runs._experiment_id() == runs.EXPERIMENT
