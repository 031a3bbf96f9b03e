"""The yield ledger of a retrain: seconds of each stage, including skipped ones, and its storage in the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit.operations import yield_ledger
from emuedit.operations.yield_ledger import Ledger
from emuedit.tracking import runs
from emuedit.tracking.service_errors import hide_password
from flows import dvc_graph

SECONDS_TAG = "seconds."
"""Prefix of tags with the seconds of the stages that ran."""
_FILE = Path("scratch") / yield_ledger.ARTIFACT


@dataclass(frozen=True)
class YieldRecord:
    """The ledger as logged to a run: metrics `yield.<task>.<step>` and a file. Empty without filtered pairs."""

    ledger: Ledger | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def make(graph: dvc_graph.Graph, run_id: str, seconds: Mapping[str, float]) -> YieldRecord:
    """The ledger of the current outputs. An error of MLflow is printed; then the seconds of skipped stages are unknown."""
    complete = dict(seconds)
    if run_id:
        try:
            complete = all_seconds(graph, seconds)
        except Exception as error:  # any error of MLflow: the retrain is more important
            print(f"== the seconds of the skipped stages could not be looked up: {hide_password(str(error))}", flush=True)
    ledger = yield_ledger.read(graph.root, complete)
    if ledger is None:
        return YieldRecord()
    file = graph.root / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ledger.to_dict(), indent=1) + "\n", encoding="utf-8")
    return YieldRecord(ledger, ledger.metrics(), {yield_ledger.ARTIFACT: file})


def all_seconds(graph: dvc_graph.Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Stage -> its seconds in this run or in runs with the same output hash; stages without a value are omitted.

    The longest of several runs counts: the others resumed the work, or DVC had nothing to do for the stage.
    """
    hashes = graph.hashes()
    complete = dict(seconds)
    for stage in graph.stages:
        outs = {f"dvc.{out.as_posix()}": hashes[out.as_posix()] for out in stage.outs if out.as_posix() in hashes}
        if outs and (earlier := runs.tag_values(f"{SECONDS_TAG}{stage.name}", outs)):
            complete[stage.name] = max(complete.get(stage.name, 0.0), *map(float, earlier))
    return complete


def tags(graph: dvc_graph.Graph, seconds: Mapping[str, float]) -> dict[str, str]:
    """Tags for `all_seconds` of the stages that finished, even if the run failed later."""
    hashes = graph.hashes()
    finished = [stage for stage in graph.stages if stage.name in seconds]
    outs = [out.as_posix() for stage in finished for out in stage.outs]
    return {f"dvc.{out}": hashes[out] for out in outs if out in hashes} | {
        f"{SECONDS_TAG}{stage.name}": f"{seconds[stage.name]:.1f}" for stage in finished
    }
