"""The yield ledger and the profile of the data, with a real MLflow database."""

import json
from pathlib import Path
from typing import Any

import pytest

from emuedit.cli import main
from emuedit.data_checks import pair_profile, reference_profile
from emuedit.tracking import mlflow_client, registry
from flows import dvc_graph, flow_artifacts, release, yield_record
from flows.retrain_options import RetrainOptions
from tests.data_checks.profiles import make_profile, make_vectors
from tests.operations.test_yield_ledger import COUNTS, publish_workspace

PROFILES = "reports/validation"


def make_graph(project: Path, hashes: dict[str, str]) -> dvc_graph.Graph:
    """A graph of these stages, whose outputs lie in data/ and have these hashes in dvc.lock."""
    outs = {name: {"outs": [{"path": f"data/{name}", "md5": md5}]} for name, md5 in hashes.items()}
    (project / "dvc.lock").write_text(json.dumps({"stages": outs}))
    stages = [dvc_graph.Stage(name, (), (Path(f"data/{name}"),)) for name in hashes]
    report = dvc_graph.Stage("checks", (), (Path(PROFILES),), meta={"report": True})
    return dvc_graph.Graph(project, (*stages, report), (), {})


def finish(project: Path, hashes: dict[str, str], seconds: dict[str, float]) -> release.RetrainResult:
    graph = make_graph(project, hashes)
    return release.finish(graph, release.start(project), seconds, RetrainOptions(registry=False))


@pytest.mark.slow
def test_skipped_stages_cost_what_they_cost_when_they_ran(project: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish_workspace(project)
    (project / "params.yaml").write_text("ledger: {price_per_hour: 3.6}\n")
    hashes = {name: f"{name}-1" for name in COUNTS}
    first = finish(project, hashes, {"captions": 10.0, "instructions": 100.0, "pairs": 300.0, "dataset": 20.0})
    assert first.ledger is not None
    assert first.ledger.rows[-1].seconds == pytest.approx(430)

    again = finish(project, hashes | {"dataset": "dataset-2"}, {"dataset": 5.0})
    assert again.ledger is not None
    assert again.ledger.seconds == {"captions": 10.0, "instructions": 100.0, "pairs": 300.0, "dataset": 5.0}
    metrics = mlflow_client.client().get_run(again.run_id).data.metrics
    assert metrics["yield.add.kept"] == 20
    assert metrics["yield.all.cost_per_kept"] == pytest.approx(415 * 0.001 / 90)

    skipped_by_dvc = finish(project, hashes, {"pairs": 2.0})  # it followed a stage whose output stayed the same
    assert skipped_by_dvc.ledger is not None
    assert skipped_by_dvc.ledger.rows[-1].seconds == pytest.approx(430)

    other = finish(project, hashes | {"pairs": "made elsewhere"}, {})
    assert other.ledger is not None
    assert other.ledger.rows[-1].seconds is None

    assert main(["ledger", "--runs", "2"]) == 0
    out = capsys.readouterr().out
    assert f"Run {other.run_id}" in out
    assert [line.split()[0] for line in out.splitlines()[-2:]] == [other.run_id[:8], skipped_by_dvc.run_id[:8]]
    assert main(["ledger", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4


@pytest.mark.slow
def test_what_a_failed_run_made_is_known_to_the_next(project: Path, store: str) -> None:
    """A validation that stops comes after the stages that cost the most."""
    publish_workspace(project)
    hashes = {name: f"{name}-1" for name in COUNTS}
    graph = make_graph(project, hashes)
    seconds = {"captions": 1.0, "instructions": 2.0, "pairs": 3.0, "dataset": 4.0}
    release.fail(release.start(project), RuntimeError("breach"), graph, seconds)
    assert yield_record.all_seconds(graph, {}) == seconds


@pytest.mark.slow
def test_the_seconds_of_a_skipped_item_of_a_matrix_are_found(project: Path, store: str) -> None:
    """MLflow refuses `@` and `=` in the key of a tag, so the run has the keys with `_`."""
    seconds = {"pairs@n=4": 3.0}
    graph = make_graph(project, dict.fromkeys(seconds, "hash"))
    release.fail(release.start(project), RuntimeError("breach"), graph, seconds)
    assert yield_record.all_seconds(graph, {}) == seconds


@pytest.mark.slow
def test_a_pipeline_without_pairs_has_no_ledger(project: Path, store: str) -> None:
    result = finish(project, {"first": "x"}, {"first": 1.0})
    assert result.ledger is None


@pytest.mark.slow
def test_the_artifact_of_the_flow_has_a_row_per_task(project: Path, store: str) -> None:
    publish_workspace(project)
    ledger = finish(project, {name: name for name in COUNTS}, {}).ledger
    assert ledger is not None
    rows: list[dict[str, Any]] = flow_artifacts.yield_rows(ledger)
    assert rows[0] == {
        "task": "add", "captions": 100, "instructions": 50, "candidates": 60, "kept": 20,
        "lost most often": "dataset.l1_max 35, instructions.refused 30, instructions.full 20",
    }  # fmt: skip


@pytest.mark.slow
def test_the_profile_of_the_champion_is_the_reference_of_later_data(
    project: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reference_profile.resolve("champion", project, PROFILES).note == "no reference: no champion is registered"
    (project / PROFILES).mkdir(parents=True)
    profile, vectors = make_profile(), make_vectors(1)
    pair_profile.write(project / PROFILES, profile, vectors)
    run_id = finish(project, {}, {}).run_id
    champion = registry.ModelVersion(3, run_id)
    monkeypatch.setattr(registry, "version_at", lambda alias: champion)
    reference = reference_profile.resolve("champion", project, PROFILES)
    assert (reference.name, reference.profile) == ("models:/emuedit-editor/3", profile)
    assert reference.embeddings["target"].shape == vectors["target"].shape

    earlier = registry.ModelVersion(2, release.start(project))
    monkeypatch.setattr(registry, "version_at", lambda alias: earlier)
    reference = reference_profile.resolve("champion", project, PROFILES)
    assert reference.profile is None
    assert (
        reference.note
        == "no reference: the champion models:/emuedit-editor/2 was registered without reports/validation/profile.json"
    )
