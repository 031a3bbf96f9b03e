"""Runs that wait for MLflow: no one of them holds up the others, or the retrains that come later."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from emuedit import cli
from emuedit.tracking import run_outbox, runs
from emuedit.tracking.run_outbox import RunResults
from flows import release

RESULTS = RunResults({"size": 3}, {"loss": 0.5}, {"stages.run": "train"})


def keep(root: Path, run_id: str, results: RunResults = RESULTS) -> Path:
    return run_outbox.keep(root, "here", run_id, results)


@pytest.mark.slow
def test_a_run_of_another_mlflow_is_started_in_this_one(
    project: Path, store: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = keep(project, release.start(project))
    shutil.copy(empty_store, tmp_path / "new.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    assert release.start(project), "the next retrain"
    assert not entry.exists()
    (run,) = [run for run in all_runs() if run.data.tags.get("stages.run")]
    assert (run.data.params, run.data.metrics, run.info.status) == ({"size": "3"}, {"loss": 0.5}, "FINISHED")


@pytest.mark.slow
def test_a_run_that_was_deleted_is_started_again_once(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = release.start(project)
    keep(project, run_id)
    runs.client().delete_run(run_id)
    with monkeypatch.context() as outage:
        outage.setattr(RunResults, "send", lambda *_: (_ for _ in ()).throw(ConnectionError("gone again")))
        with pytest.raises(ConnectionError):
            run_outbox.send_all(project)
    (new_id,) = run_outbox.send_all(project)
    assert [run.info.run_id for run in all_runs()] == [new_id], "want one new run, though it was tried twice"
    assert run_outbox.entries(project) == []


@pytest.mark.slow
def test_a_run_that_mlflow_refuses_is_put_aside(project: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = release.start(project)
    runs.log_run(run_id, params={"size": 2})
    entry = keep(project, run_id)  # MLflow changes no param of a run
    keep(project, "")
    assert cli.main(["sync"]) == 1
    output = capsys.readouterr().out
    rejected = entry.with_name(f".rejected-{entry.name}")
    assert "== not uploaded: Changing param values" in output
    assert f"; the run is stored in {rejected.relative_to(project)}" in output
    assert "1 of 2 pending runs uploaded; MLflow rejected 1." in output
    assert (rejected / "run.json").is_file()
    assert release.start(project), "the next retrain"
    assert "not sent" not in capsys.readouterr().out


def test_a_damaged_entry_is_put_aside(project: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = keep(project, "")
    (entry / "run.json").write_text("{")
    assert run_outbox.send_all(project) == []
    assert f".rejected-{entry.name}" in capsys.readouterr().out


def all_runs() -> list[Any]:
    experiment = runs.client().get_experiment_by_name(runs.EXPERIMENT)
    return list(runs.client().search_runs([experiment.experiment_id]))
