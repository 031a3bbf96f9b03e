"""The whole flow over a tiny pipeline: real dvc, real Prefect, real MLflow."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.tracking import mlflow_client, registry, runs
from flows import dvc_graph, flow_process, publication, retrain, run_history, run_stage, stage_outputs
from flows.run_stage import StageCall

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def edges_of_stages() -> dict[str, set[str]]:
    """Stage -> stages that its task waited for, as the UI of Prefect shows them, in the newest flow run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (flow_run,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        tasks = [task for task in client.read_task_runs() if task.flow_run_id == flow_run.id]
    names = {task.id: task.name for task in tasks}
    return {task.name: {names[source.id] for source in task.task_inputs.get("wait_for", ())} for task in tasks}


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file} was not made in time"
        time.sleep(0.05)


def test_a_second_retrain_has_nothing_to_do(
    project: Path,
    store: str,
    weightless_model: None,
    in_process: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert retrain.main(["--dry-run"]) == 0
    assert "5 of 5 stages are out of date" in capsys.readouterr().out
    assert retrain.main([]) == 0
    output = capsys.readouterr().out
    assert "== first (never run here); 4 more to come" in output
    assert "champion: edit success 0.500 against 0.100 of the identity baseline" in output
    assert "registered  models:/emuedit-editor/1\n" in output
    assert dvc_graph.read(project).stale() == {}
    champion = registry.version_at("champion")
    assert champion is not None
    assert (project / "parent.txt").read_text() == champion.run_id
    assert champion.tags["dtype.branch"] == "bfloat16, float32", "want a tag of all items of a matrix"

    assert edges_of_stages() == {
        "first": set(),
        "branch@x-1": {"first"},
        "branch@y-1": {"first"},
        "network": {"branch@x-1", "branch@y-1"},
        "scores": {"network"},
    }
    tags = mlflow_client.client().get_run(champion.run_id).data.tags
    assert tags["stages.why"].startswith("first: never run here; branch@x-1: never run here")

    monkeypatch.setattr(flow_process, "run_flow", lambda _: pytest.fail("Prefect was started for nothing"))
    assert retrain.main(["--reason", "schedule: weekly"]) == 0
    first, second = [json.loads(line) for line in (project / run_history.FILE).read_text().splitlines()]
    assert (first["outcome"], first["run_id"], list(first["why"])) == ("finished", champion.run_id, list(first["seconds"]))
    assert (second["reason"], second["outcome"]) == ("schedule: weekly", "skipped: all 5 stages are up to date, and registered")
    output = capsys.readouterr().out
    assert output.startswith("Nothing to do: all 5 stages are up to date, and registered.")
    assert "models:/emuedit-editor/1 (as before)" in output
    assert len(mlflow_client.client().search_model_versions("name = 'emuedit-editor'")) == 1


def test_failures_are_retried_by_their_kind_and_why_it_ran_is_kept(
    project: Path, store: str, weightless_model: None, in_process: None, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, shell: Callable[..., str],
) -> None:  # fmt: skip
    """One stage loses its network twice, one runs out of memory once; both are tried again, the latter with half the batch."""
    from flows import pipeline

    monkeypatch.setattr(pipeline, "RETRY_DELAYS_S", [0.1, 0.1, 0.1])
    failures = """
tries = Path(f"{what}.tries")
n_tries = int(tries.read_text()) if tries.exists() else 0
tries.write_text(str(n_tries + 1))
if what == "first" and n_tries < 2:
    raise SystemExit(75)
if what == "network":
    if not os.environ.get("EMUEDIT_HALVE_BATCHES"):
        raise SystemExit(71)
    Path("halved.txt").write_text(os.environ["EMUEDIT_HALVE_BATCHES"])
"""
    script = (project / "make.py").read_text()
    head, body = script.split("\n\n", 1)
    (project / "make.py").write_text(head + "\n\n" + body.replace("if what ==", failures + "if what ==", 1))
    (project / ".gitignore").write_text((project / ".gitignore").read_text() + "*.tries\nhalved.txt\n")
    first, others = (project / "dvc.yaml").read_text().split("  branch:\n")  # which nothing of this test is about
    network = others.partition("  network:\n")[2].replace("[branch-x.txt, branch-y.txt]", "[data]")
    (project / "dvc.yaml").write_text(f"{first}  network:\n{network}")
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "a pipeline", cwd=project)
    assert retrain.main(["--reason", "schedule: weekly", "--branch", "retrained"]) == 0
    output = capfd.readouterr().out
    assert "== schedule: weekly" in output
    assert output.count("(network); retrying") == 2
    assert "(memory); retrying, with half the batch" in output
    assert (project / "halved.txt").read_text() == "1"
    champion = registry.version_at("champion")
    assert champion is not None
    tags = mlflow_client.client().get_run(champion.run_id).data.tags
    assert (tags["reason"], tags["stages.skipped"]) == ("schedule: weekly", "")
    assert "Retrain (schedule: weekly)" in shell("git", "log", "-1", "--format=%s", "retrained", cwd=project)
    assert pipeline.retrain(reason="schedule: weekly")["skipped"] == "skipped: all 3 stages are up to date, and registered"


def test_a_retrain_that_has_nothing_to_run_publishes_what_an_earlier_one_could_not(
    project: Path, store: str, in_process: None, dvc_in_process: None, dvc_run: Callable[..., None], tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: Callable[..., str],
) -> None:  # fmt: skip
    dvc_run("repro", "-q")
    remote = f"[core]\n    remote = away\n['remote \"away\"']\n    url = {tmp_path / 'no-such-file/remote'}\n"
    (project / ".dvc/config.local").write_text(remote)
    (tmp_path / "no-such-file").touch()
    shell("git", "add", "make.py", cwd=project)
    shell("git", "commit", "-qm", "a pipeline", cwd=project)
    words = ["--no-register", "--push", "--branch", "retrained"]
    with monkeypatch.context() as patch:  # the remote fails between the check and the push
        patch.setattr(publication, "check_access", lambda root: None)
        assert retrain.main(words) == 1
    assert "data were not pushed: want a folder that can be written" in capfd.readouterr().err
    (tmp_path / "no-such-file").unlink()
    assert retrain.main(words) == 0
    assert "== skipped: all 5 stages are up to date" in capfd.readouterr().out
    assert list((tmp_path / "no-such-file/remote").rglob("*.dir")), "want the folders of the stages in the remote"
    commit = shell("git", "rev-parse", "retrained", cwd=project)
    assert "dvc.lock" in shell("git", "show", "--name-only", "--format=", commit.strip(), cwd=project)
    assert retrain.main(words) == 0
    assert shell("git", "rev-parse", "retrained", cwd=project) == commit, "want no empty commit"


def test_a_failure_names_the_stage_and_the_next_run_resumes(
    project: Path, store: str, in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (project / "make.py").read_text()
    (project / "make.py").write_text(script + "if what == 'branch' and sys.argv[2] == 'y': raise SystemExit('disk is full')\n")
    assert retrain.main(["--no-register"]) == 1
    output = capfd.readouterr()
    assert "stage branch@y-1 failed with exit status 255" in output.err
    assert "disk is full" in output.err
    assert output.err.splitlines()[-1].endswith("exit status 255; its output is above; the same command resumes")
    run = mlflow_client.client().search_runs([mlflow_client.client().get_experiment_by_name(runs.EXPERIMENT).experiment_id])[0]
    assert run.info.status == "FAILED"
    assert set(dvc_graph.read(project).stale()) == {"branch@y-1", "network", "scores"}
    (project / "in.txt").write_text("0.7")
    (project / "make.py").write_text(script)
    assert retrain.main(["--no-register", "--max-parallel", "2"]) == 0
    assert json.loads((project / "reports/metrics.json").read_text())["edit_success"]["emuedit"]["overall"] == 0.7
    assert stage_outputs.success_table(dvc_graph.read(project))["identity"]["overall"] == 0.1
    assert registry.version_at("champion") is None


def test_another_dvc_is_waited_for(project: Path, shell: Callable[..., str]) -> None:
    cmd = "touch started && while [ ! -e may-end ]; do sleep 0.1; done && touch done.txt"
    (project / "dvc.yaml").write_text(f"stages:\n  slow:\n    cmd: {cmd}\n    outs: [done.txt]\n    always_changed: true\n")
    command = (sys.executable, "-m", "dvc", "repro", "-q", "slow")
    other = threading.Thread(target=shell, args=command, kwargs={"cwd": project})
    other.start()
    try:
        wait_for(project / "started")
        with pytest.raises(run_stage.BusyError, match="is busy"):
            run_stage.run(StageCall("slow", project), threading.Event())
    finally:
        (project / "may-end").touch()
        other.join()
    assert run_stage.run(StageCall("slow", project), threading.Event()) > 0


def test_a_stage_can_be_stopped_and_has_a_time_limit(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: touch started && sleep 60\n    always_changed: true\n")
    with pytest.raises(run_stage.StageError, match=r"slow exceeded its time limit of 1 s"):
        run_stage.run(StageCall("slow", project, timeout_s=1.0), threading.Event())
    (project / "started").unlink(missing_ok=True)
    stop = threading.Event()

    def stop_when_started() -> None:
        try:
            wait_for(project / "started")
        finally:
            stop.set()

    threading.Thread(target=stop_when_started, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(run_stage.StageError, match="was stopped"):
        run_stage.run(StageCall("slow", project), stop)
    assert time.monotonic() - start < 15


def test_what_a_stage_prints_is_shown_without_the_hints_of_dvc(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: echo '  12 pairs' && touch done.txt\n    outs: [done.txt]\n")
    run_stage.run(StageCall("slow", project), threading.Event())
    assert capfd.readouterr().out == "> echo '  12 pairs' && touch done.txt\n  12 pairs\n"


def test_a_silent_stage_is_reported_until_it_prints(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.5")
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: sleep 3 && echo loaded\n    always_changed: true\n")
    run_stage.run(StageCall("slow", project), threading.Event())
    before, _, _ = capfd.readouterr().err.partition("loaded")
    reports = [line for line in before.splitlines() if line.startswith("slow: running, ")]
    assert len(reports) >= 2, "want a line a second, half of it the margin for lines of the stage"
