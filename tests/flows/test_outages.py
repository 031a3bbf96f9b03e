"""Retrains while MLflow is unreachable: they train, store their run, and upload it later."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.tracking import mlflow_client, registry, run_outbox, runs
from flows import dvc_graph, release, retrain
from flows.retrain_options import RetrainOptions
from tests.doors.fake_servers import broken_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def retrain_runs() -> list[dict[str, str]]:
    """Tags of the runs of retrains that have ended."""
    experiment = mlflow_client.client().get_experiment_by_name(runs.EXPERIMENT)
    listed = mlflow_client.client().search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    return [run.data.tags for run in listed if "stages.run" in run.data.tags]


def test_a_retrain_trains_without_mlflow_and_sends_its_run_later(
    project: Path, store: str, weightless_model: None, in_process: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as outage, broken_server(503) as url:
        outage.setenv("MLFLOW_TRACKING_URI", url)
        assert retrain.main([]) == 0
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        assert "fails (500 or above); check its log. The retrain continues" in output.out
        assert "`emuedit sync` uploads it" in output.out
        assert dvc_graph.read(project).stale() == {}
        assert retrain.main([]) == 0, "nothing is trained twice"
        assert "cannot check whether they are registered: MLflow at http" in capsys.readouterr().out
        assert retrain.main(["--reason", "schedule: weekly"]) == 1, "nobody reads what a scheduled run prints"
        assert "want to know whether they are registered, got no answer: MLflow at http" in capsys.readouterr().err
        assert cli.main(["sync"]) == 1
        assert "1 runs are pending in .emuedit/unsent-runs" in capsys.readouterr().err
    assert len(run_outbox.entries(project)) == 1
    assert cli.main(["sync"]) == 0
    assert "1 of 1 pending runs uploaded" in capsys.readouterr().out
    (tags,) = retrain_runs()
    assert tags["stages.run"] == "first, branch@x-1, branch@y-1, network, scores"
    child = mlflow_client.client().get_run(tags["run.network"])
    assert child.data.metrics == {"loss": 0.5}
    assert run_outbox.entries(project) == []
    assert retrain.main([]) == 0
    champion = registry.version_at("champion")
    assert champion is not None, "the next retrain registers what was trained meanwhile"
    assert "== 5 of 5 stages are up to date" in capsys.readouterr().out


def test_a_run_that_was_opened_before_the_outage_is_completed(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "reports").mkdir()
    (project / "reports/metrics.json").write_text(json.dumps({"edit_success": {"emuedit": {"overall": 0.5}}}))
    stages = (dvc_graph.Stage("scores", (), (Path("reports"),), meta={"gate": "emuedit", "report": True}),)
    graph = dvc_graph.Graph(project, stages, (Path("reports/metrics.json"),), {})
    run_id = release.start(project)
    with monkeypatch.context() as outage, broken_server(500) as url:
        outage.setenv("MLFLOW_TRACKING_URI", url)
        outage.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert release.finish(graph, run_id, {"scores": 1.0}, RetrainOptions()).version is None
    (project / "reports/metrics.json").write_text("{}")  # of a later retrain
    second = release.start(project)
    assert "uploaded to MLflow: the run" in capsys.readouterr().out
    run = mlflow_client.client().get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"edit_success.emuedit.overall": 0.5})
    assert second != run_id


def test_a_registry_that_cannot_be_written_costs_no_run(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    weightless_model: None, dvc_run: Callable[..., None],
) -> None:  # fmt: skip
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    dvc_run("repro", "-q")
    with monkeypatch.context() as reader:
        refusal = MlflowException("Permission denied", PERMISSION_DENIED)
        reader.setattr("mlflow.register_model", lambda *_, **__: (_ for _ in ()).throw(refusal))
        result = release.finish(dvc_graph.read(project), release.start(project), {}, RetrainOptions())
    assert (result.version, retrain_runs()[0]["stages.run"] if retrain_runs() else "") == (None, "")
    assert "not registered: MLflow at sqlite:///" in capsys.readouterr().out
    assert len(retrain_runs()) == 1, "want the run ended, whose results MLflow took"
    again = release.finish(dvc_graph.read(project), release.start(project), {}, RetrainOptions())
    assert again.version is not None


def test_a_run_that_cannot_be_ended_after_a_failed_registration_is_named(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"register": "editor", "gate": "emuedit"}
    graph = dvc_graph.Graph(project, (dvc_graph.Stage("network", (), (Path("models/editor"),), meta=meta),), (), {})
    run_id = release.start(project)

    def go_away(*arguments: object) -> None:
        raise ConnectionError("Connection refused")

    with monkeypatch.context() as outage:
        outage.setattr(registry, "find_version", go_away)
        outage.setattr(runs, "end_run", go_away)
        assert release.finish(graph, run_id, {}, RetrainOptions()).version is None
    output = capsys.readouterr().out
    assert f"the run {run_id} stays open: MLflow at sqlite:///" in output
    release.start(project)
    assert mlflow_client.client().get_run(run_id).info.status == "KILLED", "as the line says"


def test_a_deleted_experiment_is_restored(project: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = release.start(project)
    experiment_id = mlflow_client.client().get_run(first).info.experiment_id
    mlflow_client.client().delete_experiment(experiment_id)
    second = release.start(project)
    assert "'emuedit' had been deleted in MLflow; restored it" in capsys.readouterr().out
    assert mlflow_client.client().get_run(second).info.experiment_id == experiment_id
    assert not runs.restore_experiment()
