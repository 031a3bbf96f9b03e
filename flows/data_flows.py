"""The flow `refresh-data`: run the stages up to the kept pairs, without training, and optionally push the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from emuedit.operations import yield_ledger
from emuedit.tracking import registry, run_outbox, runs, service_errors
from emuedit.tracking.service_errors import ServiceError
from flows import (
    dvc_graph,
    flow_artifacts,
    publication,
    release,
    retrain_lock,
    run_history,
    yield_record,
)
from flows.mail_notification import mail_on_failure
from flows.pipeline import run_stages
from flows.run_history import RunLine
from flows.run_reason import complete_reason
from flows.yield_record import YieldRecord

FLOW = "refresh-data"


@flow(name=FLOW, validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def refresh_data(target: str, reason: str = "", push: bool = False) -> dict[str, Any]:
    """Run the stages up to `target` that are out of date, while no retrain runs in the folder, and record them like a retrain.

    reason: why it runs, see `run_reason`. push: whether to push the data to the remote afterwards.
    """
    root, reason = Path.cwd(), complete_reason(reason)
    print(f"== {reason}", flush=True)
    with retrain_lock.exclusive(root, FLOW):
        return _refresh(root, target, reason, push)


def _refresh(root: Path, target: str, reason: str, push: bool) -> dict[str, Any]:
    graph = dvc_graph.read(root)
    publication.check(graph, push, "")
    targets = graph.up_to(target)
    stale = {name: reasons for name, reasons in graph.stale().items() if name in targets}
    if not stale:
        decision = f"skipped: the {len(targets)} stages up to {target} are up to date"
        print(f"== {decision}", flush=True)
        with run_history.recorded(root, RunLine(FLOW, reason, outcome=decision)):
            flow_artifacts.publish_refresh(f"{reason}; {decision}", YieldRecord(), {}, "")
            if push:  # what an earlier run could not push
                publication.push_data(root)
        return {"stages": {}, "skipped": sorted(targets), "run_id": ""}
    names = [stage.name for stage in graph.stages if stage.name in targets]
    line = RunLine(FLOW, reason, stale, {}, release.start(root))
    with run_history.recorded(root, line):
        _run(graph, line, names)
        if push:
            publication.push_data(root)
    return {"stages": line.seconds, "skipped": sorted(targets - set(line.seconds)), "run_id": line.run_id}


def _run(graph: dvc_graph.Graph, line: RunLine, names: Sequence[str]) -> None:
    """Run the stale stages among `names`, fill `line.seconds`, and log reasons, seconds and yield to the MLflow run."""
    try:
        run_history.store_reasons(line, names)
        flow_artifacts.publish_stages(line, names)
        run_stages(graph, line.stale, line.run_id, force=False, max_parallel=1, seconds=line.seconds)
        finished = dvc_graph.read(graph.root)
        has_pairs = any(Path(yield_ledger.KEPT_PAIRS) in stage.outs for stage in graph.stages if stage.name in names)
        record = yield_record.make(finished, line.run_id, line.seconds) if has_pairs else YieldRecord()
        _log(finished, line, record)
    except BaseException as error:
        release.fail(line.run_id, error, graph, line.seconds)
        raise
    flow_artifacts.publish_refresh(line.reason, record, line.seconds, line.run_id)


def _log(graph: dvc_graph.Graph, line: RunLine, record: YieldRecord) -> None:
    """Log the results to the run. If MLflow cannot be used, they are stored and uploaded later, as those of a retrain."""
    tags = {**yield_record.tags(graph, line.seconds), registry.RUN_REASON_TAG: line.reason, "stages.run": ", ".join(line.seconds)}
    results = run_outbox.RunResults({}, record.metrics, {**tags, **run_history.stage_reasons_tags(line.stale)}, record.files)
    try:
        with service_errors.converted():
            if not line.run_id:
                raise ServiceError("MLflow is unreachable")
            results.send(line.run_id)
            runs.end_run(line.run_id, "FINISHED")
    except ServiceError as error:
        release.store_for_upload(graph.root, line.run_id, results, error, line.flow)
