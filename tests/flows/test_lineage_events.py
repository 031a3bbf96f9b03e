"""OpenLineage events: read back with nothing but JSON, as another tool would."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from flows import dvc_graph, lineage_events
from flows.lineage_events import LineageLog, StageTimes

LOCK = """
stages:
  pairs:
    cmd: python -m emuedit.stages.pairs
    deps: [{path: data/instructions, md5: aaaa.dir}]
    outs: [{path: data/pairs, md5: bbbb.dir}]
"""
TRAIN = """\
  train:
    cmd: python -m emuedit.stages.train
    deps: [{path: data/pairs, md5: bbbb.dir}]
    outs: [{path: models/editor, md5: cccc.dir}]
"""
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def times(start_s: float, end_s: float) -> StageTimes:
    return StageTimes(NOON + dt.timedelta(seconds=start_s), NOON + dt.timedelta(seconds=end_s))


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dvc_graph.Graph:
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.lock").write_text(LOCK)
    return dvc_graph.Graph(tmp_path, (), (), {})


def read_events(graph: dvc_graph.Graph) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (graph.root / lineage_events.FILE).read_text().splitlines()]


@pytest.mark.slow
def test_each_stage_has_two_events_with_its_times_that_join_by_content(graph: dvc_graph.Graph) -> None:
    log = LineageLog(graph, "run1")
    log.completed("pairs", times(0, 12))
    assert len(read_events(graph)) == 2, "want the events of a stage as soon as it ends"
    (graph.root / "dvc.lock").write_text(LOCK + TRAIN)  # which dvc writes when the second stage ends
    log.completed("train", times(13, 43))
    events = read_events(graph)
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("pairs", "START"), ("pairs", "COMPLETE"), ("train", "START"), ("train", "COMPLETE"),
    ]  # fmt: skip
    seconds = [(dt.datetime.fromisoformat(event["eventTime"]) - NOON).total_seconds() for event in events]
    assert seconds == [0, 12, 13, 43], "want a stage to start after its inputs exist"
    output, source = events[1]["outputs"][0], events[3]["inputs"][0]
    assert (output["name"], output["facets"]["version"]["datasetVersion"]) == ("data/pairs", "bbbb.dir")
    assert (source["name"], source["facets"]["version"]["datasetVersion"]) == ("data/pairs", "bbbb.dir")
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"] != events[2]["run"]["runId"]
    assert events[0]["outputs"] == []


@pytest.mark.parametrize("content", ["", "stages:\n  pairs:\n    cmd: python\n    deps"])
def test_a_lock_that_dvc_is_writing_for_another_stage_costs_no_more_than_the_inputs_and_outputs(
    content: str, graph: dvc_graph.Graph
) -> None:
    log = LineageLog(graph, "run1")
    (graph.root / "dvc.lock").write_text(content)
    log.completed("pairs", times(0, 12))
    (graph.root / "dvc.lock").write_text(LOCK + TRAIN)
    log.completed("train", times(13, 43))
    ends = [event for event in read_events(graph) if event["eventType"] == "COMPLETE"]
    assert [[output["name"] for output in event["outputs"]] for event in ends] == [[], ["models/editor"]]


def test_a_failed_stage_has_its_message_and_no_outputs(graph: dvc_graph.Graph) -> None:
    LineageLog(graph, "run1").failed("pairs", times(0, 3), "stage pairs failed with exit status 1")
    start, end = read_events(graph)
    assert (start["eventType"], end["eventType"], end["outputs"]) == ("START", "FAIL", [])
    assert end["run"]["facets"]["errorMessage"]["message"] == "stage pairs failed with exit status 1"


@pytest.mark.parametrize("run_ids", [("run1", "run2"), ("", "")])
def test_a_second_run_appends(run_ids: tuple[str, str], graph: dvc_graph.Graph) -> None:
    for run_id in run_ids:
        LineageLog(graph, run_id).completed("pairs", times(0, 1))
    ids = [event["run"]["runId"] for event in read_events(graph)]
    assert len(ids) == 4
    assert len(set(ids)) == 2, "want different runs, also without MLflow"


def test_a_server_that_does_not_answer_is_reported_once(graph: dvc_graph.Graph, capsys: pytest.CaptureFixture[str]) -> None:
    (graph.root / lineage_events.FILE.parent).write_text("not a folder")
    log = LineageLog(graph, "run1")
    log.completed("pairs", times(0, 1))
    log.completed("pairs", times(1, 2))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("== no OpenLineage events are sent from pairs on: ")
