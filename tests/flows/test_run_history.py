"""What is recorded about runs, with and without MLflow."""

import json
from pathlib import Path

import pytest

from emuedit.tracking import mlflow_client, runs
from flows import release, run_history
from flows.run_history import RunLine
from flows.stopping import Stopped


def read_lines(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / run_history.FILE).read_text().splitlines()]


def test_each_run_is_a_line_also_a_skipped_and_a_failed_one(tmp_path: Path) -> None:
    why = {"pairs": ("param pairs: modified",), "dataset": ("follows pairs",)}
    run_history.append(tmp_path, RunLine("retrain", "schedule: weekly", outcome="skipped: all 2 stages are up to date"))
    line = RunLine("retrain", "person: a", why, {"pairs": 2.0}, "run1")
    errors = (RuntimeError("stage dataset failed at http://me:5ecret@host:\nits output"), Stopped("ctrl-c"))
    for error in errors:
        with pytest.raises(type(error)), run_history.recorded(tmp_path, line):
            raise error
    with run_history.recorded(tmp_path, line):
        pass
    skipped, failed, stopped, finished = read_lines(tmp_path)
    assert stopped["outcome"] == "stopped: ctrl-c"
    assert (skipped["reason"], skipped["outcome"]) == ("schedule: weekly", "skipped: all 2 stages are up to date")
    assert failed["outcome"] == "failed: stage dataset failed at http://me:***@host"
    assert failed["why"] == {"pairs": ["param pairs: modified"], "dataset": ["follows pairs"]}
    assert (finished["outcome"], finished["seconds"], finished["run_id"]) == ("finished", {"pairs": 2.0}, "run1")


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".emuedit").touch()
    run_history.append(tmp_path, RunLine("retrain", "person: a"))
    assert "== .emuedit/flow-runs.jsonl was not written: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_run_in_mlflow_says_from_its_start_why_each_stage_is_run(project: Path, store: str) -> None:
    run_id = release.start(project)
    line = RunLine("refresh-data", "data: new captions", {"pairs": ("param pairs: modified", "follows captions")}, {}, run_id)
    run_history.store_reasons(line, ["captions", "pairs"])
    run = mlflow_client.client().get_run(run_id)
    tags = run.data.tags
    assert (run.info.run_name, run.info.status) == ("refresh-data", "RUNNING")
    assert tags["reason"] == "data: new captions"
    assert tags["stages.why"] == "pairs: param pairs: modified, follows captions"
    assert tags["stages.skipped"] == "captions"
    text = runs.read_text(run_id, run_history.WHY_ARTIFACT)
    assert text is not None
    assert json.loads(text) == {"pairs": ["param pairs: modified", "follows captions"]}


def test_an_error_of_mlflow_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ConnectionError("no route to http://me:5ecret@host")

    monkeypatch.setattr(mlflow_client, "client", fail)
    run_history.store_reasons(RunLine("retrain", "person: a", {}, {}, "run1"), [])
    assert "== the reasons are only in .emuedit/flow-runs.jsonl: no route to http://me:***@host" in capsys.readouterr().out
    run_history.store_reasons(RunLine("retrain", "person: a"), [])
    assert capsys.readouterr().out == "", "want nothing without a run"
