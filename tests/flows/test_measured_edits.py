"""The numbers of measured edits of each task, from the metrics of an evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows import stage_outputs
from flows.dvc_graph import Graph


@pytest.mark.parametrize(
    ("metrics", "numbers"),
    [
        ({"edits": {"local": {"in_table": 9, "usable": 7, "measured": 7}, "add": {"measured": 4}}}, {"local": 7, "add": 4}),
        ({"edit_success": {"emuedit": {"local": 0.5}}}, {}),
        ({"edits": 12}, {}),
        ({"edits": {"local": 12}}, {}),
    ],
)
def test_measured_edits_are_read_from_the_metrics_that_have_them(
    metrics: dict[str, Any], numbers: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert stage_outputs.measured_edits(Graph(tmp_path, (), (Path("metrics.json"),), {})) == numbers
