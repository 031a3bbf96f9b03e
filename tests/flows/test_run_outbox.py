"""Runs that wait for MLflow: no one of them holds up the others, or the retrains that come later."""

import errno
import fcntl
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from emuedit import cli
from emuedit.tracking import mlflow_client, run_outbox, runs
from emuedit.tracking.run_outbox import RunResults
from emuedit.tracking.service_errors import LocalError
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
    mlflow_client.client().delete_run(run_id)
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


def test_two_processes_that_upload_at_once_create_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads stand for processes: each call locks the file through a descriptor of its own."""
    keep(tmp_path, "")
    created: list[str] = []
    has_started, is_refused = threading.Event(), threading.Event()
    flock = fcntl.flock

    def start_run(name: str, workspace: str) -> str:
        created.append(name)
        has_started.set()
        is_refused.wait(5)
        return f"run {len(created)}"

    def watched_flock(stream: IO[str], operation: int) -> None:
        try:
            flock(stream, operation)
        except BlockingIOError:
            is_refused.set()
            raise

    monkeypatch.setattr(fcntl, "flock", watched_flock)
    monkeypatch.setattr(runs, "start_run", start_run)
    for name in ("log_run", "end_run"):
        monkeypatch.setattr(runs, name, lambda *arguments, **options: None)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_outbox.send_all, tmp_path)
        assert has_started.wait(120)
        assert run_outbox.send_all(tmp_path) == []
    assert (first.result(), created) == (["run 1"], ["retrain"])
    assert "another process uploads the runs in .emuedit/unsent-runs; waiting" in capsys.readouterr().out


@pytest.mark.slow
def test_sync_beside_another_upload_rejects_nothing(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = keep(project, "")
    restore = runs.restore_experiment
    monkeypatch.setattr(runs, "restore_experiment", lambda: shutil.rmtree(entry) or restore())  # the other has uploaded it
    assert cli.main(["sync"]) == 0
    assert "0 of 1 pending runs uploaded; another process uploaded 1." in capsys.readouterr().out


def test_a_damaged_entry_is_put_aside(project: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = keep(project, "")
    (entry / "run.json").write_text("{")
    assert run_outbox.send_all(project) == []
    assert f".rejected-{entry.name}" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
@pytest.mark.parametrize("refused_operation", [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX], ids=["at once", "after a wait"])
def test_entries_that_cannot_be_locked_are_named_and_stay(
    refused_operation: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: IO[str], operation: int) -> None:
        if operation == refused_operation:
            raise OSError(number, os.strerror(number))
        raise BlockingIOError

    entry = keep(tmp_path, "")
    monkeypatch.setattr(fcntl, "flock", refuse)
    place = re.escape(f"got {os.strerror(number)}: {tmp_path / run_outbox.LOCK}; use a file system with locks")
    with pytest.raises(LocalError, match=rf"want a folder whose files can be locked \(flock\), {place}"):
        run_outbox.send_all(tmp_path)
    assert run_outbox.entries(tmp_path) == [entry]


def all_runs() -> list[Any]:
    experiment = mlflow_client.client().get_experiment_by_name(runs.EXPERIMENT)
    return list(mlflow_client.client().search_runs([experiment.experiment_id]))
