"""The flow `refresh-data`: real dvc, Prefect and MLflow, over the first stages of a tiny pipeline."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from emuedit.operations import yield_ledger
from emuedit.tracking import mlflow_client, run_outbox, runs, service_errors
from flows import dvc_graph, lineage_events, publication, retrain_lock, run_history, run_stage, yield_record
from tests.operations.test_yield_ledger import publish_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_dvc")]


def read_runs() -> list[Any]:
    """Runs of flows, the oldest first."""
    experiment = mlflow_client.client().get_experiment_by_name(runs.EXPERIMENT)
    return list(reversed(mlflow_client.client().search_runs([experiment.experiment_id])))


def read_artifacts() -> dict[str, Any]:
    """Key -> content of the newest artifact."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        artifacts = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
    return {artifact.key: artifact.data for artifact in artifacts}


def read_history(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / run_history.FILE).read_text().splitlines()]


def test_data_are_refreshed_without_a_training_and_recorded(
    project: Path, store: str, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import data_flows

    first = data_flows.refresh_data("branch", "data: new captions")
    assert set(first["stages"]) == {"first", "branch@x-1", "branch@y-1"}
    assert not (project / "models").exists()
    (run,) = read_runs()
    tags = run.data.tags
    assert (run.info.run_id, run.info.run_name, run.info.status) == (first["run_id"], "refresh-data", "FINISHED")
    assert (tags["reason"], tags["stages.skipped"]) == ("data: new captions", "")
    assert tags["stages.why"].startswith("first: never run here; branch@x-1: ")
    assert "first" in yield_record.all_seconds(dvc_graph.read(project), {}), "want its seconds for the ledger of a later retrain"
    artifacts = read_artifacts()
    assert "data: new captions" in artifacts["refresh-data"]
    assert '"stage": "branch@y-1"' in artifacts["stages"]
    jobs = [json.loads(line)["job"]["name"] for line in (project / lineage_events.FILE).read_text().splitlines()]
    assert jobs == [name for stage in first["stages"] for name in (stage, stage)]

    pushed: list[Path] = []
    monkeypatch.setattr(publication, "check_access", lambda root: None)
    monkeypatch.setattr(publication, "push_data", pushed.append)
    assert data_flows.refresh_data("branch", push=True)["stages"] == {}
    assert pushed == [project], "want what an earlier run could not push"
    assert "skipped: the 3 stages up to branch are up to date" in read_artifacts()["refresh-data"]
    outcomes = [line["outcome"] for line in read_history(project)]
    assert outcomes == ["finished", "skipped: the 3 stages up to branch are up to date"]
    assert len(read_runs()) == 1
    with pytest.raises(dvc_graph.GraphError, match=r"want a stage out of first, .*, got 'nothing'"):
        data_flows.refresh_data("nothing")


def test_a_refresh_up_to_the_kept_pairs_has_a_ledger(project: Path, store: str, prefect: None) -> None:
    from flows import data_flows

    publish_workspace(project)
    (project / "data/dataset").rename(project / "kept")
    (project / "dvc.yaml").write_text("stages:\n  dataset:\n    cmd: cp -r kept data/dataset\n    outs: [data/dataset]\n")
    result = data_flows.refresh_data("dataset", "data: new captions")
    run = mlflow_client.client().get_run(result["run_id"])
    assert run.data.metrics["yield.add.kept"] == 20
    assert runs.read_text(result["run_id"], yield_ledger.ARTIFACT) is not None
    assert '"task": "add"' in read_artifacts()["yield"]


def test_a_refresh_waits_for_a_retrain_in_the_folder(
    project: Path, store: str, prefect: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flows import data_flows

    monkeypatch.setattr(retrain_lock, "_POLL_S", 0.1)
    has_lock, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    try_to_lock, read = retrain_lock._Attempt.lock, dvc_graph.read

    def hold() -> None:
        with retrain_lock.exclusive(project):
            has_lock.set()
            may_end.wait(60)
            ended.set()

    def lock(attempt: retrain_lock._Attempt) -> int | None:
        descriptor = try_to_lock(attempt)
        if descriptor is None:
            may_end.set()
        return descriptor

    def read_after_the_retrain(root: str | Path) -> dvc_graph.Graph:
        assert ended.is_set(), "want nothing to be read while a retrain changes it"
        return read(root)

    retrain = threading.Thread(target=hold)
    retrain.start()
    has_lock.wait(60)
    monkeypatch.setattr(retrain_lock._Attempt, "lock", lock)
    monkeypatch.setattr(dvc_graph, "read", read_after_the_retrain)
    try:
        assert set(data_flows.refresh_data("first")["stages"]) == {"first"}
    finally:
        may_end.set()
        retrain.join()
    assert "== another retrain is running in this folder (process " in capfd.readouterr().out


def test_a_failed_refresh_keeps_its_reasons_and_what_it_finished(project: Path, store: str, prefect: None) -> None:
    from flows import data_flows

    script = (project / "make.py").read_text()
    (project / "make.py").write_text(script + "if what == 'branch': raise SystemExit('disk is full')\n")
    with pytest.raises(run_stage.StageError, match="branch@x-1 failed"):
        data_flows.refresh_data("branch", "data: new captions")
    (run,) = read_runs()
    assert run.info.status == "FAILED"
    assert (run.data.tags["reason"], "seconds.first" in run.data.tags) == ("data: new captions", True)
    assert "first: never run here" in run.data.tags["stages.why"]
    (line,) = read_history(project)
    assert line["outcome"] == "failed: stage branch@x-1 failed with exit status 255"
    assert list(line["seconds"]) == ["first"]
    events = [json.loads(text) for text in (project / lineage_events.FILE).read_text().splitlines()]
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("first", "START"), ("first", "COMPLETE"), ("branch@x-1", "START"), ("branch@x-1", "FAIL"),
    ]  # fmt: skip
    moments = [event["eventTime"] for event in events]
    assert moments == sorted(moments)


def test_without_mlflow_a_refresh_is_stored_for_later(
    project: Path, store: str, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import data_flows

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
        for name, value in service_errors.SERVICE_ENV.items():
            patch.setenv(name, value)
        result = data_flows.refresh_data("first", "data: new captions")
    assert result["run_id"] == ""
    assert set(result["stages"]) == {"first"}
    (run_id,) = run_outbox.send_all(project)
    assert mlflow_client.client().get_run(run_id).info.run_name == "refresh-data"
    tags = mlflow_client.client().get_run(run_id).data.tags
    assert (tags["reason"], tags["stages.why"]) == ("data: new captions", "first: never run here")
