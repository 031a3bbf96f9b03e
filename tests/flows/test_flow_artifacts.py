"""The artifacts of a flow, without a Prefect server."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.tracking import mlflow_client, registry
from flows import dvc_graph, flow_artifacts
from flows.retrain_result import RetrainResult
from flows.run_history import RunLine

Created = dict[str, Any]


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> Created:
    """Key of each artifact that is created -> its content."""
    contents: Created = {}
    for kind in ("table", "markdown", "link"):

        def create(*words: Any, key: str, description: str = "") -> None:
            contents[key] = words[0]

        monkeypatch.setattr(flow_artifacts, f"create_{kind}_artifact", create)
    return contents


@pytest.fixture
def graph(tmp_path: Path) -> dvc_graph.Graph:
    """Two stages with reports, of which the second has a contact sheet of noise, which compresses badly."""
    stages = tuple(dvc_graph.Stage(name, (), (Path("reports", name),), meta={"report": True}) for name in ("checks", "scores"))
    for stage in stages:
        (tmp_path / stage.outs[0]).mkdir(parents=True)
    (tmp_path / "reports/checks/report.md").write_text("# good")
    noise = np.random.default_rng(0).integers(0, 256, (1200, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "reports/scores" / flow_artifacts.CONTACT_SHEET)
    return dvc_graph.Graph(tmp_path, stages, (), {})


@pytest.mark.slow
def test_the_contact_sheet_is_shown_at_a_size_that_prefect_can_store(graph: dvc_graph.Graph, created: Created) -> None:
    flow_artifacts.publish(RetrainResult({"scores": 3.0}), "person: a", graph)
    head, _, rest = created["contact-sheet"].partition("base64,")
    assert head == "![contact sheet](data:image/jpeg;"
    content = base64.b64decode(rest.partition(")")[0])
    assert len(content) <= flow_artifacts.MAX_IMAGE_BYTES
    with Image.open(io.BytesIO(content)) as image:
        assert image.width / image.height == pytest.approx(2000 / 1200, rel=0.01)
        assert image.width < 2000
    assert "`reports/scores/contact_sheet.png`, reduced" in created["contact-sheet"]
    created.clear()
    flow_artifacts.publish(RetrainResult(), "person: a", graph)
    assert created.keys() == {"retrain"}, "want no image again if no stage ran"


def test_a_small_image_keeps_its_size(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30), "red").save(tmp_path / "a.png")
    content = base64.b64decode(flow_artifacts.image_uri(tmp_path / "a.png").partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (40, 30)


@pytest.mark.slow
def test_the_results_link_to_the_run_the_version_and_the_reports(
    graph: dvc_graph.Graph, created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SimpleNamespace(get_run=lambda run_id: SimpleNamespace(info=SimpleNamespace(experiment_id="7")))
    monkeypatch.setattr(mlflow_client, "client", lambda: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:5ecret@mlflow.example.org/prefix/")
    version = registry.ModelVersion(3, "run1")
    flow_artifacts.publish(RetrainResult({}, "run1", version), "person: a", graph)
    run = "https://mlflow.example.org/prefix/#/experiments/7/runs/run1"
    assert created["mlflow-run"] == run
    assert created["model-version"] == "https://mlflow.example.org/prefix/#/models/emuedit-editor/versions/3"
    assert created["report-checks"] == f"{run}/artifacts/reports/checks/report.md"
    assert created["report-scores"] == f"{run}/artifacts/reports/scores/contact_sheet.png"
    assert f"- [Run run1 in MLflow]({run})" in created["retrain"]
    assert "5ecret" not in str(created)


def test_without_a_server_there_are_no_links_and_an_error_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert flow_artifacts.links("run1", 3, []) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert flow_artifacts.links("", 3, []) == []
    monkeypatch.setattr(mlflow_client, "client", SimpleNamespace)  # without get_run
    assert flow_artifacts.links("run1", 3, []) == []
    assert "== no links to MLflow: " in capsys.readouterr().out


def test_the_stages_of_a_run_are_listed_with_their_reasons(created: Created) -> None:
    line = RunLine("retrain", "person: a", {"pairs": ("param pairs: modified", "follows captions")})
    flow_artifacts.publish_stages(line, ["captions", "pairs"])
    assert created["stages"] == [
        {"stage": "captions", "state": "up to date", "why": ""},
        {"stage": "pairs", "state": "out of date", "why": "param pairs: modified; follows captions"},
    ]
