"""The whole flow over a tiny pipeline: real dvc, real Prefect, real MLflow."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emuedit.tracking import registry, runs
from flows import dvc_graph, release, retrain, run_stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_retrain_twice(
    project: Path, store: str, any_model: None, prefect: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retrain.main(["--dry-run"]) == 0
    assert "5 of 5 stages are out of date" in capsys.readouterr().out
    assert retrain.main([]) == 0
    said = capsys.readouterr().out
    assert "== first (dep in.txt: modified" in said
    assert "4 more to come" in said
    assert "champion: edit success 0.500 is above 0.100" in said
    assert "registered  models:/emuedit-editor/1\n" in said
    assert dvc_graph.read(project).stale() == {}
    champion = registry.version_at("champion")
    assert champion is not None
    assert (project / "parent.txt").read_text() == champion.run_id

    monkeypatch.setattr(retrain, "_flow", lambda *_: pytest.fail("Prefect was started for nothing"))
    assert retrain.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Nothing to do: all 5 stages are up to date, and registered.")
    assert "models:/emuedit-editor/1 (as before)" in said
    assert len(runs.client().search_model_versions("name = 'emuedit-editor'")) == 1


def test_a_failure_names_the_stage_and_the_next_run_goes_on(
    project: Path, store: str, prefect: None, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (project / "make.py").read_text()
    (project / "make.py").write_text(whole + "if what == 'branch' and sys.argv[2] == 'y': raise SystemExit('out of paint')\n")
    assert retrain.main(["--no-register"]) == 1
    said = capfd.readouterr()
    assert "stage branch@y-1 failed with exit status 255" in said.err
    assert "out of paint" in said.err
    assert "The same command goes on where it was." in said.err
    run = runs.client().search_runs([runs.client().get_experiment_by_name(runs.EXPERIMENT).experiment_id])[0]
    assert run.info.status == "FAILED"
    assert set(dvc_graph.read(project).stale()) == {"branch@y-1", "network", "scores"}
    (project / "in.txt").write_text("0.7")
    (project / "make.py").write_text(whole)
    assert retrain.main(["--no-register", "--max-parallel", "2"]) == 0
    assert json.loads((project / "reports/metrics.json").read_text())["edit_success"]["emuedit"]["overall"] == 0.7
    assert release.table(dvc_graph.read(project))["identity"]["overall"] == 0.1
    assert registry.version_at("champion") is None


def test_another_dvc_is_waited_for(project: Path, dvc_run: Callable[..., str]) -> None:
    (project / "dvc.yaml").write_text(
        "stages:\n  slow:\n    cmd: touch begun && sleep 6 && touch done.txt\n    outs: [done.txt]\n    always_changed: true\n"
    )
    other = threading.Thread(target=dvc_run, args=("repro", "-q", "slow"))
    other.start()
    while not (project / "begun").exists():
        time.sleep(0.05)
    with pytest.raises(run_stage.BusyError, match="is busy"):
        run_stage.run("slow", project, threading.Event(), None, {})
    other.join()
    assert run_stage.run("slow", project, threading.Event(), None, {}) > 0


def test_a_stage_can_be_stopped_and_has_its_time(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: touch begun && sleep 60\n    always_changed: true\n")
    with pytest.raises(run_stage.StageError, match=r"slow ran out of its 5.0 s"):
        run_stage.run("slow", project, threading.Event(), 5.0, {})
    stop = threading.Event()
    threading.Timer(3.0, stop.set).start()
    began = time.monotonic()
    with pytest.raises(run_stage.StageError, match="was stopped"):
        run_stage.run("slow", project, stop, None, {})
    assert time.monotonic() - began < 15
