"""OpenLineage events of a retrain: one run per stage that ran, with its inputs and outputs and their hashes, from `dvc.lock`.

OpenLineage's own settings (`OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG`, `openlineage.yml`) name the destination; without them it is
`.emuedit/openlineage.jsonl`. The version of a dataset is its hash, so events of several machines can be combined.
"""

import datetime as dt
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emuedit.runtime import seed_for
from flows.dvc_graph import Graph

FILE = Path(".emuedit/openlineage.jsonl")
NAMESPACE = "emuedit"
PRODUCER = "https://pypi.org/project/emuedit"
_SETTINGS = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")


def emit(graph: Graph, run_id: str, seconds: Mapping[str, float]) -> int:
    """Send a START and a COMPLETE event for each stage that ran; returns their number. `run_id`: their parent run in MLflow."""
    from openlineage.client import event_v2 as events

    client = _client(graph.root)
    stages = graph.locked_stages()
    end = dt.datetime.now(dt.UTC)
    n_events = 0
    for name, duration in seconds.items():
        entry = stages.get(name)
        if entry is None:
            continue
        run = events.Run(runId=str(uuid.UUID(int=seed_for("openlineage", run_id, name) << 64)))
        job = events.Job(NAMESPACE, name)
        inputs = [events.InputDataset(NAMESPACE, dep["path"], facets=_version(dep)) for dep in entry.get("deps", ())]
        outputs = [events.OutputDataset(NAMESPACE, out["path"], facets=_version(out)) for out in entry.get("outs", ())]
        for kind, time in ((events.RunState.START, end - dt.timedelta(seconds=duration)), (events.RunState.COMPLETE, end)):
            client.emit(
                events.RunEvent(
                    eventTime=time.isoformat(), producer=PRODUCER, run=run, job=job, eventType=kind, inputs=inputs,
                    outputs=outputs if kind is events.RunState.COMPLETE else [],
                )
            )  # fmt: skip
            n_events += 1
    return n_events


def _version(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The facet with the content hash of a path."""
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(str(entry.get(entry.get("hash", "md5"), "")))}


def _client(root: Path) -> Any:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    if any(os.environ.get(name) for name in _SETTINGS) or (root / "openlineage.yml").exists():
        return OpenLineageClient()
    (root / FILE).parent.mkdir(exist_ok=True)
    return OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(root / FILE), append=True)))
