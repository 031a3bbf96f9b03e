"""OpenLineage events of the stages that a flow ran: inputs and outputs with their hashes, from `dvc.lock`, and the real times.

OpenLineage's own settings (`OPENLINEAGE_URL`, `OPENLINEAGE_CONFIG`, `openlineage.yml`) name the destination; without them it is
`.emuedit/openlineage.jsonl`. The version of a dataset is its hash, so events of several machines can be combined.
"""

import contextlib
import datetime as dt
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit.dvc_lock import LockFileError, hash_of
from emuedit.runtime import seed_for
from emuedit.tracking.service_errors import hide_password
from flows.dvc_graph import Graph

FILE = Path(".emuedit/openlineage.jsonl")
NAMESPACE = "emuedit"
PRODUCER = "https://pypi.org/project/emuedit"
_SETTINGS = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")


@dataclass(frozen=True)
class StageTimes:
    """When a stage ran, with its retries and without waiting for other stages or the GPU."""

    start: dt.datetime
    end: dt.datetime


class LineageLog:
    """Sends the events of one run of a flow, those of each stage when it ends, so that a later failure loses none.

    `run_id`: the MLflow run of the flow; empty: a random id. After the first error of the transport, which is printed, no more
    events are sent, because an unreachable server would delay each stage.
    """

    def __init__(self, graph: Graph, run_id: str) -> None:
        self._graph, self._run_id = graph, run_id or uuid.uuid4().hex
        self._client: Any = None
        self._is_broken = False

    def completed(self, stage: str, times: StageTimes) -> None:
        """Send START and COMPLETE of a stage, with inputs and outputs as they are in `dvc.lock` now; none if it is damaged."""
        entry: Mapping[str, Any] = {}
        with contextlib.suppress(LockFileError):  # such as while DVC writes it for a stage that runs in parallel
            entry = self._graph.locked_stages().get(stage, {})
        self._try(stage, times, entry, "")

    def failed(self, stage: str, times: StageTimes, message: str) -> None:
        """Send START and FAIL of a stage, with the error message. `dvc.lock` does not know its inputs and outputs."""
        self._try(stage, times, {}, message or "failed")

    def _try(self, stage: str, times: StageTimes, entry: Mapping[str, Any], problem: str) -> None:
        if self._is_broken:
            return
        try:
            self._send(stage, times, entry, problem)
        except Exception as error:  # of any transport: the results are complete, and the message says what is missing
            self._is_broken = True
            text = hide_password(f"{type(error).__name__}: {error}")
            print(f"== no OpenLineage events are sent from {stage} on: {text}", flush=True)

    def _send(self, stage: str, times: StageTimes, entry: Mapping[str, Any], problem: str) -> None:
        """Send START and COMPLETE, or FAIL if there is a `problem`. `entry`: the stage in `dvc.lock`."""
        from openlineage.client import event_v2 as events
        from openlineage.client.facet_v2 import error_message_run

        facets: dict[str, Any] = {"errorMessage": error_message_run.ErrorMessageRunFacet(problem, "python")} if problem else {}
        run_uuid = str(uuid.UUID(int=seed_for("openlineage", self._run_id, stage) << 64))
        inputs = [events.InputDataset(NAMESPACE, dep["path"], facets=_version(dep)) for dep in entry.get("deps", ())]
        outputs = [events.OutputDataset(NAMESPACE, out["path"], facets=_version(out)) for out in entry.get("outs", ())]
        last = events.RunState.FAIL if problem else events.RunState.COMPLETE
        unwritten: list[events.OutputDataset] = []
        start = (events.RunState.START, times.start, events.Run(runId=run_uuid), unwritten)
        end = (last, times.end, events.Run(runId=run_uuid, facets=facets), outputs)
        self._client = self._client or _make_client(self._graph.root)
        for kind, time, run, written in (start, end):
            self._client.emit(
                events.RunEvent(
                    eventTime=time.isoformat(), producer=PRODUCER, run=run, job=events.Job(NAMESPACE, stage), eventType=kind,
                    inputs=inputs, outputs=written,
                )
            )  # fmt: skip


def _version(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The facet with the content hash of a path."""
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(hash_of(entry))}


def _make_client(root: Path) -> Any:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport

    if any(os.environ.get(name) for name in _SETTINGS) or (root / "openlineage.yml").exists():
        return OpenLineageClient()
    (root / FILE).parent.mkdir(exist_ok=True)
    return OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(root / FILE), append=True)))
