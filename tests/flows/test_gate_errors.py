"""Errors at the end of a retrain: those of the registry wait for the next retrain, those of the measurement are raised."""

from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.promotion import comparison
from emuedit.tracking import mlflow_client, registry, runs
from emuedit.tracking.registry import ModelVersion
from emuedit.tracking.service_errors import LocalError, ServiceError
from flows import dvc_graph, release
from flows.retrain_options import RetrainOptions

STAGES = (
    dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
    dvc_graph.Stage("scores", ("network",), (Path("reports"),), meta={"gate": "emuedit"}),
)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """MLflow without a server: the new version is pending, and runs are only opened and closed. Returns the closed runs."""
    closed: list[tuple[str, str]] = []
    pending = ModelVersion(5, "run", {release.promote.STATE_TAG: release.promote.PENDING})
    monkeypatch.setattr(release, "start", lambda root: "opened later")
    monkeypatch.setattr(release.run_outbox.RunResults, "send", lambda *arguments: None)
    monkeypatch.setattr(runs, "end_run", lambda run_id, status: closed.append((run_id, status)))
    monkeypatch.setattr(runs, "log_run", lambda *arguments, **options: None)
    monkeypatch.setattr(registry, "find_version", lambda content: pending)
    monkeypatch.setattr(registry, "version_at", lambda alias: None)
    monkeypatch.setattr(release.alias_moves, "set_challenger", lambda number: None)
    monkeypatch.setattr(release.alias_moves, "repair", lambda: None)
    return closed


def finish(project: Path, run_id: str) -> release.RetrainResult:
    (project / "params.yaml").write_text("world: {benchmark: toy}\nscores: {tasks: [local], n_edits: 1}\n")
    return release.finish(dvc_graph.Graph(project, STAGES, (), {}), run_id, {"network": 1.0}, RetrainOptions())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "scratch/promotion/a"), "got Permission denied: scratch/promotion/a; correct"),
        (TimeoutError("the judge is slow"), "want measured editors, got TimeoutError: the judge is slow; solve this"),
    ],
)
def test_an_error_of_the_measurement_is_not_an_outage_of_mlflow(
    error: OSError, message: str, project: Path, closed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(comparison.ComparisonConditions, "key", fail)
    monkeypatch.setattr(comparison.benchmark, "load", fail)
    with pytest.raises(LocalError, match=message):
        finish(project, "open before")
    assert closed == [], "want the run left to the flow that opened it"


def test_a_run_that_was_opened_at_the_end_is_closed_after_an_error(
    project: Path, closed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release.promote, "promote", lambda *arguments: (_ for _ in ()).throw(KeyError("a fault of the gate")))
    with pytest.raises(KeyError, match="a fault of the gate"):
        finish(project, "")
    assert closed == [("opened later", "FAILED")]


@pytest.mark.parametrize(
    ("part", "name", "problem"),
    [
        (registry, "find_version", "not registered: MLflow at "),
        (registry, "version_at", "version 5 has no decision: MLflow at "),
    ],
)
def test_a_failure_of_the_registry_is_the_problem_of_the_result(
    part: object, name: str, problem: str, project: Path, closed: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(part, name, lambda *arguments: (_ for _ in ()).throw(ConnectionError("Connection refused")))
    result = finish(project, "open before")
    assert result.problem.startswith(problem)
    assert f"== {problem}" in capsys.readouterr().out
    assert closed == [("open before", "FINISHED")], "want the run closed, whose results MLflow took"


def test_a_part_that_cannot_be_read_is_not_an_outage_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(registry, "check_part", refuse)
    with pytest.raises(LocalError, match=f"want readable parts of the model, got Permission denied: {tmp_path}"):
        registry.register_version("run", {"editor": tmp_path}, release.MODEL_FILE, {}, {})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_retrain_whose_model_was_not_registered_fails_at_its_end(
    project: Path, store: str, weightless_model: None, in_process: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], dvc_run: Callable[..., None],
) -> None:  # fmt: skip
    from flows import pipeline, retrain, run_history

    published: list[str] = []
    monkeypatch.setattr(pipeline, "_publish", lambda graph, result, *rest: published.append(result.run_id))
    dvc_run("repro", "-q")
    refuse = lambda *arguments, **options: (_ for _ in ()).throw(ServiceError("this account lacks the permission"))  # noqa: E731
    with monkeypatch.context() as refused:
        refused.setattr(registry, "register_version", refuse)
        assert retrain.main([]) == 1
    assert len(published) == 1, "want the data pushed all the same"
    assert "retrain: not registered: this account lacks the permission; the same command resumes" in capsys.readouterr().err
    assert '"outcome": "failed: not registered: this account lacks the permission"' in (project / run_history.FILE).read_text()
    assert mlflow_client.client().get_run(published[0]).info.status == "FINISHED"
    assert retrain.main([]) == 0
    assert registry.version_at("champion") is not None
