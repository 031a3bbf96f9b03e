"""From finished stages to the registry: the run in MLflow, the registered version, the promotion gate and the aliases.

`meta:` of the stages in `dvc.yaml` sets what is registered and what the gate uses:

    meta: {register: editor}   its out becomes the part `editor` of the model
    meta: {gate: emuedit}      the gate uses its metrics of the system `emuedit`; its edit settings are the model's defaults
    meta: {report: true}       its outs are logged to the run
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emuedit import process_identity
from emuedit.data.data_card import CARD as DATA_CARD
from emuedit.editor.package_layout import MODELS
from emuedit.progress import waiting
from emuedit.promotion import promote, version_card
from emuedit.tracking import alias_moves, moved_store, registry, run_outbox, runs, service_errors
from emuedit.tracking.service_errors import ServiceError
from flows import dvc_graph, gate_stage, publication, result_origin, run_history, stage_outputs, yield_record
from flows.result_origin import StartState
from flows.retrain_options import RetrainOptions
from flows.retrain_result import RetrainResult
from flows.run_reason import is_attended
from flows.stage_outputs import content_tag, measured_edits, merge_metrics, model_parts, success_table
from flows.yield_record import YieldRecord

MODEL_FILE = Path(__file__).with_name("pyfunc_model.py")


class NotRegisteredError(RuntimeError):
    """Raised at the end of a retrain whose results are complete, but whose model the registry did not take or decide about."""


def check(graph: dvc_graph.Graph, options: RetrainOptions, will_run: bool) -> None:
    """Check at the start what would make the retrain fail at its end.

    Raises GateError, ParamsError, GraphError, PublicationError or GitError.
    will_run: whether a stage is out of date, so that the gate may have to decide.
    """
    publication.check(graph, options.push, options.branch)
    if options.registry and model_parts(graph):
        result_origin.check_outs(graph)
    if options.registry and will_run:
        gate_stage.check(graph)


def start(root: Path) -> str:
    """Open the run of this retrain, the parent of the stages' runs, and return its id.

    Pending runs are uploaded first. If MLflow is unreachable, the retrain continues without a run and the id is empty.
    """
    try:
        moved_store.check(root)
        service_errors.check()
        with service_errors.converted():
            _send_waiting(root)
            workspace = process_identity.workspace(root)
            runs.end_open_runs(workspace)
            return runs.start_run("retrain", workspace)
    except ServiceError as error:
        print(f"== {error}. The retrain continues; its run is uploaded when MLflow is reachable again", flush=True)
        return ""


def fail(run_id: str, error: BaseException, graph: dvc_graph.Graph, seconds: Mapping[str, float]) -> None:
    """Close the run of a retrain that failed or was stopped, with the seconds of the stages that finished.

    An error of MLflow is printed and does not hide `error`.
    """
    try:
        if run_id:
            runs.end_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
            runs.log_run(run_id, tags=yield_record.tags(graph, seconds))
    except Exception as tracking_error:  # any error of MLflow: the flow's own error is more important
        print(f"== the run {run_id} could not be closed: {service_errors.hide_password(str(tracking_error))}", flush=True)


def find_registered(graph: dvc_graph.Graph) -> RetrainResult | None:
    """The result, if the current outputs are registered already and the gate has decided."""
    version = registry.find_version(content_tag(graph)) if model_parts(graph) else None
    if version is not None and version.tags.get(promote.STATE_TAG) == promote.PENDING:
        return None
    return RetrainResult(run_id=version.run_id, version=version, table=success_table(graph)) if version else None


def look_up(graph: dvc_graph.Graph) -> tuple[RetrainResult | None, str]:
    """`find_registered`, and an error text if MLflow cannot be used (else empty). Uploads pending runs first."""
    try:
        moved_store.check(graph.root)
        service_errors.check()
        with service_errors.converted():
            _send_waiting(graph.root)
            return find_registered(graph), ""
    except ServiceError as error:
        return None, str(error)


@dataclass(frozen=True)
class UpToDate:
    """A workspace in which a retrain has nothing to run and nothing to register."""

    state: str
    """Such as `all 5 stages are up to date, and registered`."""
    result: RetrainResult


def up_to_date(graph: dvc_graph.Graph, options: RetrainOptions) -> UpToDate | None:
    """The state of a workspace without stages to run; None if its outputs have to be registered.

    The version is looked up to register or to tag it. If MLflow cannot be used, there is nothing to do, and the state has the
    reason; raises NotRegisteredError in a run that nobody attends, whose owner would not learn it otherwise.
    """
    registered, problem = look_up(graph) if options.registry or options.branch else (None, "")
    state = f"all {len(graph.stages)} stages are up to date"
    if registered:
        return UpToDate(f"{state}, and registered", registered)
    if options.registry and not problem:
        return None
    if problem and options.registry and not is_attended(options.reason):
        raise NotRegisteredError(f"{state}; want to know whether they are registered, got no answer: {problem}")
    state += f"; cannot check whether they are registered: {problem}" if problem else ""
    return UpToDate(state, RetrainResult(table=success_table(graph)))


def finish(
    graph: dvc_graph.Graph,
    run_id: str,
    seconds: Mapping[str, float],
    options: RetrainOptions,
    at_start: StartState | None = None,
) -> RetrainResult:
    """Log the results and the reason to the run, register the model if it is new, and apply the promotion gate.

    at_start: the workspace before the first stage; None: as it is now, if no stage ran.
    If MLflow cannot be used, the results are stored, and uploaded by the next retrain or by `emuedit sync`. If the registry fails
    after the results were logged, the result has the `problem`. Other errors are raised; the run is closed if it was opened here.
    """
    if run_id:
        return _finish(graph, run_id, seconds, options, at_start)
    run_id = start(graph.root)
    try:
        return _finish(graph, run_id, seconds, options, at_start)
    except BaseException as error:
        fail(run_id, error, graph, seconds)
        raise


def _finish(
    graph: dvc_graph.Graph,
    run_id: str,
    seconds: Mapping[str, float],
    options: RetrainOptions,
    at_start: StartState | None,
) -> RetrainResult:
    """`finish` for a run that is open, or without a run (empty)."""
    at_start = at_start or result_origin.read_start(graph.root)
    record = yield_record.make(graph, run_id, seconds)
    result = RetrainResult(seconds, run_id, table=success_table(graph), ledger=record.ledger)
    results = _results(graph, seconds, options.reason, record, at_start)
    try:
        with service_errors.converted():
            if not run_id:
                raise ServiceError("MLflow is unreachable")
            results.send(run_id)
    except ServiceError as error:
        store_for_upload(graph.root, run_id, results, error)
        is_missed = options.registry and model_parts(graph) and not is_attended(options.reason)
        return dataclasses.replace(result, problem=f"not registered: {error}") if is_missed else result
    try:
        if options.registry and model_parts(graph):
            result = _register(graph, result, options.reason, at_start)
            result = _decide(graph, result)
    except ServiceError as error:
        state = f"version {result.version.number} has no decision" if result.version else "not registered"
        result = dataclasses.replace(result, problem=f"{state}: {error}")
        print(f"== {result.problem}. The next retrain retries it without training", flush=True)
    if problem := runs.try_to_end_run(run_id, "FINISHED"):
        print(f"== the run {run_id} stays open: {problem}. The next retrain here closes it as KILLED", flush=True)
    return result


def store_for_upload(root: Path, run_id: str, results: run_outbox.RunResults, error: ServiceError, flow: str = "retrain") -> None:
    """Store the results of a flow that MLflow could not take; the next retrain or `emuedit sync` uploads them."""
    entry = run_outbox.keep(root, process_identity.workspace(root), run_id, results, flow)
    print(f"== the run is stored in {entry.relative_to(root)} ({error}); `emuedit sync` uploads it", flush=True)


def _results(
    graph: dvc_graph.Graph,
    seconds: Mapping[str, float],
    reason: str,
    record: YieldRecord,
    at_start: StartState,
) -> run_outbox.RunResults:
    """Everything to log to the run."""
    root = graph.root
    artifacts = {path.as_posix(): root / path for path in (*graph.metrics, *stage_outputs.report_files(graph))}
    for path in (out for stage in graph.stages for out in stage.outs):
        artifacts[f"{version_card.FOLDER}/{path.name}/{DATA_CARD}"] = root / path / DATA_CARD
    tags = {
        **result_origin.make_tags(graph, content_tag(graph), at_start),
        **yield_record.tags(graph, seconds),
        registry.RUN_REASON_TAG: reason,
        "stages.run": ", ".join(seconds),
        run_history.SKIPPED_TAG: ", ".join(stage.name for stage in graph.stages if stage.name not in seconds),
    }
    return run_outbox.RunResults(
        at_start.params,
        {**merge_metrics(graph), **record.metrics},
        tags,
        {**{name: path for name, path in artifacts.items() if path.exists()}, **record.files},
        stage_outputs.stats_files(graph),
    )


def _register(graph: dvc_graph.Graph, result: RetrainResult, reason: str, at_start: StartState) -> RetrainResult:
    """Register the current outputs, unless they are registered; the version is pending until the gate decides."""
    stage, content = gate_stage.find(graph), content_tag(graph)
    with service_errors.converted():
        version = registry.find_version(content)
        if version and version.tags.get(promote.STATE_TAG) == promote.PENDING:
            alias_moves.set_challenger(version.number)  # again, if the retrain that registered it was killed
    if version:
        return dataclasses.replace(result, version=version)
    table = success_table(graph)
    overall = table.get(stage.system, {}).get("overall")
    tags = {
        **result_origin.make_tags(graph, content, at_start),
        **version_card.make_tags(table, stage.system, at_start.params, stage.section, measured_edits(graph)),
        **({} if overall is None else {version_card.SUCCESS_TAG: f"{overall:.4f}"}),
        **{registry.RUN_REASON_TAG: reason, promote.STATE_TAG: promote.PENDING, "run_id": result.run_id},
    }
    with tempfile.TemporaryDirectory() as temporary:
        files = at_start.write_files(graph.root, Path(temporary))
        with service_errors.converted():
            runs.log_run(result.run_id, files=files)
    folders = {name: graph.root / path for name, path in model_parts(graph).items()}
    settings = at_start.edit_settings(stage.section).model_dump()
    with service_errors.converted():
        with waiting("registering the model"):
            version = registry.register_version(result.run_id, folders, MODEL_FILE, settings, tags)
        version = registry.delete_duplicate_version(version)
        is_new = version.run_id == result.run_id  # MLflow makes two if its answer was lost and the request sent again
        if is_new:
            alias_moves.set_challenger(version.number)
            version_card.update(version.number)
    return dataclasses.replace(result, version=version, is_new=is_new)


def _decide(graph: dvc_graph.Graph, result: RetrainResult) -> RetrainResult:
    """Apply the gate to a pending version. Raises ServiceError for the registry, LocalError for a file of the measurement."""
    version = result.version
    if version is None or version.tags.get(promote.STATE_TAG) != promote.PENDING:
        return result
    section = gate_stage.find(graph).section
    is_current = not any(name.partition("@")[0] == section for name in graph.stale())  # else its code or inputs were edited since
    models = graph.root / MODELS if is_current else None
    with gate_stage.measuring_slot(graph.root), service_errors.converted():
        outcome = promote.promote(version, graph.root, models, section)
    if outcome.decision.rows:
        print(outcome.decision.table(), flush=True)
        with service_errors.converted():
            runs.log_text(result.run_id, "promotion/decision.json", json.dumps(outcome.decision.to_dict(), indent=1))
            runs.log_text(result.run_id, "promotion/table.txt", outcome.decision.table())
    return dataclasses.replace(result, decision=outcome.decision)


def _send_waiting(root: Path) -> None:
    """Upload pending runs."""
    if runs.restore_experiment():
        print(f"== the experiment {runs.EXPERIMENT!r} had been deleted in MLflow; restored it", flush=True)
    for run_id in run_outbox.send_all(root):
        print(f"== uploaded to MLflow: the run {run_id} of an earlier retrain", flush=True)
