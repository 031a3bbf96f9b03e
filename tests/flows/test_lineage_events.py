"""OpenLineage events: read back with nothing but JSON, as another tool would."""

import json
from pathlib import Path

import pytest

from flows import dvc_graph, lineage_events

LOCK = """
stages:
  pairs:
    cmd: python -m emuedit.stages.pairs
    deps: [{path: data/instructions, md5: aaaa.dir}]
    outs: [{path: data/pairs, md5: bbbb.dir}]
  train:
    cmd: python -m emuedit.stages.train
    deps: [{path: data/pairs, md5: bbbb.dir}]
    outs: [{path: models/editor, md5: cccc.dir}]
"""


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dvc_graph.Graph:
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.lock").write_text(LOCK)
    return dvc_graph.Graph(tmp_path, (), (), {})


def test_each_stage_that_ran_has_two_events_that_join_by_content(graph: dvc_graph.Graph) -> None:
    assert lineage_events.emit(graph, "run1", {"pairs": 12.0, "train": 30.0}) == 4
    lines = (graph.root / lineage_events.FILE).read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("pairs", "START"), ("pairs", "COMPLETE"), ("train", "START"), ("train", "COMPLETE"),
    ]  # fmt: skip
    output, source = events[1]["outputs"][0], events[3]["inputs"][0]
    assert (output["name"], output["facets"]["version"]["datasetVersion"]) == ("data/pairs", "bbbb.dir")
    assert (source["name"], source["facets"]["version"]["datasetVersion"]) == ("data/pairs", "bbbb.dir")
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"] != events[2]["run"]["runId"]
    assert events[0]["outputs"] == []


def test_a_second_run_appends(graph: dvc_graph.Graph) -> None:
    lineage_events.emit(graph, "run1", {"pairs": 1.0})
    lineage_events.emit(graph, "run2", {"pairs": 1.0})
    runs = [json.loads(line)["run"]["runId"] for line in (graph.root / lineage_events.FILE).read_text().splitlines()]
    assert len(runs) == 4
    assert len(set(runs)) == 2


def test_stages_that_did_not_run_have_no_events(graph: dvc_graph.Graph) -> None:
    assert lineage_events.emit(graph, "run1", {}) == 0
