"""From finished stages to the registry: the run in MLflow, the registered version, the promotion gate and the aliases.

`meta:` of the stages in `dvc.yaml` sets what is registered and what the gate uses:

    meta: {register: editor}   its out becomes the part `editor` of the model
    meta: {gate: emuedit}      the gate uses its metrics of the system `emuedit`; its edit settings are the model's defaults
    meta: {report: true}       its outs are logged to the run
"""

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit import config, process_identity
from emuedit.data.dependencies import SUMMARY_FILE, hash_file
from emuedit.data.publish import STATS_FILE, logs_folder
from emuedit.editor.package_layout import MODELS
from emuedit.operations.yield_ledger import Ledger
from emuedit.progress import waiting
from emuedit.promotion import lineage as origins
from emuedit.promotion import promote
from emuedit.promotion.gate import Decision
from emuedit.tracking import experiments, moved_store, registry, run_outbox, runs, service_errors
from emuedit.tracking.service_errors import ServiceError
from flows import dvc_graph, gate_stage, publication, yield_record
from flows.yield_record import YieldRecord

MODEL_FILE = Path(__file__).with_name("pyfunc_model.py")
SUCCESS = "edit_success"
"""Key of the table of edit success in the metrics: system -> task, or `overall` -> share in [0, 1], None if not measured."""
SUCCESS_TAG = "edit_success"
"""Tag of a version with its overall success in its own evaluation."""

SuccessTable = dict[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class RetrainResult:
    """Result of a retrain."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stages that ran -> their seconds."""
    run_id: str = ""
    version: registry.ModelVersion | None = None
    is_new: bool = False
    """Whether this retrain registered the version."""
    decision: Decision | None = None
    table: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """System -> task -> edit success."""
    ledger: Ledger | None = None
    """Yield of each task; None if no pairs were filtered."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for Prefect."""
        return {
            "stages": dict(self.seconds),
            "run_id": self.run_id,
            "version": self.version.number if self.version else None,
            "new": self.is_new,
            "promoted": self.decision.promote if self.decision else None,
            "reason": self.decision.reason if self.decision else "",
        }


def check(graph: dvc_graph.Graph, will_register: bool, push: bool, branch: str) -> None:
    """Check at the start what would make the retrain fail at its end. Raises GateError, ParamsError or PublicationError."""
    publication.check(graph, push, branch)
    if will_register:
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
            runs.log_run(run_id, {}, {}, yield_record.tags(graph, seconds), {})
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


def finish(
    root: Path, graph: dvc_graph.Graph, run_id: str, seconds: Mapping[str, float], register: bool, reason: str = ""
) -> RetrainResult:
    """Log the results and the reason to the run, register the model if it is new, and apply the promotion gate.

    If MLflow cannot be used, the results are stored, and uploaded by the next retrain or by `emuedit sync`.
    """
    run_id = run_id or start(root)
    record = yield_record.make(root, graph, run_id, seconds)
    result = RetrainResult(seconds, run_id, table=success_table(graph), ledger=record.ledger)
    results = _results(root, graph, seconds, reason, record)
    try:
        with service_errors.converted():
            if not run_id:
                raise ServiceError("MLflow is unreachable")
            results.send(run_id)
    except ServiceError as error:
        entry = run_outbox.keep(root, process_identity.workspace(root), run_id, results)
        print(f"== the run is stored in {entry.relative_to(root)} ({error}); `emuedit sync` uploads it", flush=True)
        return result
    try:
        with service_errors.converted():
            if register and model_parts(graph):
                result = _decide(root, graph, _register(root, graph, result, reason))
            runs.end_run(run_id, "FINISHED")
    except ServiceError as error:
        print(f"== not registered: {error}. The next retrain retries it without training", flush=True)
        if problem := runs.try_to_end_run(run_id, "FINISHED"):
            print(f"== the run {run_id} stays open: {problem}. The next retrain here closes it as KILLED", flush=True)
    return result


def _results(
    root: Path, graph: dvc_graph.Graph, seconds: Mapping[str, float], reason: str, record: YieldRecord
) -> run_outbox.RunResults:
    """Everything to log to the run."""
    reports = [path for stage in graph.stages for path in (stage.outs if stage.meta.get("report") else stage.plots)]
    artifacts = {path.as_posix(): root / path for path in (*graph.metrics, *_without_shards(root, reports))}
    params_file = root / config.PARAMS_FILE
    tags = {
        **lineage(root, graph),
        **number_formats(graph),
        **yield_record.tags(graph, seconds),
        registry.WHY_TAG: reason,
        "stages.run": ", ".join(seconds),
        "stages.skipped": ", ".join(stage.name for stage in graph.stages if stage.name not in seconds),
    }
    return run_outbox.RunResults(
        config.read_yaml(params_file) if params_file.exists() else {},
        {**merge_metrics(graph), **record.metrics},
        tags,
        {**{name: path for name, path in artifacts.items() if path.exists()}, **record.files},
        {stage.name: stats for stage in graph.stages for stats in _stats_files(root, stage)},
    )


def _without_shards(root: Path, reports: Iterable[Path]) -> Iterator[Path]:
    """Report files without shards, which would fill MLflow with every evaluated image; DVC stores them."""
    for path in reports:
        if not (root / path).is_dir():
            yield path
            continue
        files = sorted(file for file in (root / path).rglob("*") if file.is_file())
        yield from (file.relative_to(root) for file in files if not file.match("shard-*.parquet"))


def model_parts(graph: dvc_graph.Graph) -> dict[str, Path]:
    """Parts of the model -> their folders, as in `meta: {register: ...}` of the stages."""
    return {name: path for stage in graph.stages for name, path in stage.parts().items()}


def content_tag(graph: dvc_graph.Graph) -> str:
    """16 hex digits, equal for models with equal weights and metrics."""
    return graph.content_of([*model_parts(graph).values(), *graph.metrics])


def merge_metrics(graph: dvc_graph.Graph) -> dict[str, Any]:
    """All metrics files in one mapping. A key that exists already is stored as `<file>.<key>`."""
    metrics: dict[str, Any] = {}
    for path in graph.metrics:
        if (graph.root / path).exists():
            for key, value in runs.read_metrics_file(graph.root / path).items():
                metrics[key if key not in metrics else f"{path.as_posix()}.{key}"] = value
    return metrics


def success_table(graph: dvc_graph.Graph) -> SuccessTable:
    """System -> task -> edit success; empty if it was not measured."""
    return dict(merge_metrics(graph).get(SUCCESS, {}))


def lineage(root: Path, graph: dvc_graph.Graph) -> dict[str, str]:
    """Tags with the origin of a result: commit, `dvc.lock`, the hash of every out."""
    tags = {registry.CONTENT_TAG: content_tag(graph), "dvc.lock": graph.lock_hash(), "parent": _parent(root, graph)}
    if (root / "uv.lock").exists():
        tags["uv.lock"] = hash_file(root / "uv.lock")
    if commit := _git(root, "rev-parse", "HEAD"):
        changes = _git(root, "status", "--porcelain", "--", ".", f":(exclude){dvc_graph.LOCK}")
        tags |= {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    return tags | {f"dvc.{path}": md5 for path, md5 in graph.hashes().items()}


def number_formats(graph: dvc_graph.Graph) -> dict[str, str]:
    """Tags `dtype.<stage>` with the number format of each stage, from its summary."""
    tags: dict[str, str] = {}
    for stage in graph.stages:
        for path in (graph.root / out / SUMMARY_FILE for out in stage.outs):
            params = json.loads(path.read_text(encoding="utf-8"))["params"] if path.is_file() else {}
            tags |= {f"dtype.{stage.name}": params["dtype"]} if "dtype" in params else {}
    return tags


def _register(root: Path, graph: dvc_graph.Graph, result: RetrainResult, reason: str) -> RetrainResult:
    """Register the current outputs, unless they are registered; the version is pending until the gate decides."""
    stage = gate_stage.find(graph)
    if version := registry.find_version(content_tag(graph)):
        return dataclasses.replace(result, version=version)
    overall = success_table(graph).get(stage.system, {}).get("overall")
    origin = {registry.WHY_TAG: reason, promote.STATE_TAG: promote.PENDING, "run_id": result.run_id}
    tags = {**lineage(root, graph), **({} if overall is None else {SUCCESS_TAG: f"{overall:.4f}"}), **origin}
    files = {f"{origins.FOLDER}/{name}": root / name for name in origins.FILES if (root / name).exists()}
    runs.log_run(result.run_id, {}, {}, {}, files)
    folders = {name: root / path for name, path in model_parts(graph).items()}
    with waiting("registering the model"):
        own_version = registry.register_version(result.run_id, folders, MODEL_FILE, stage.edit_settings.model_dump(), tags)
    version = registry.delete_duplicate_version(own_version)
    if version.number != own_version.number:
        return dataclasses.replace(result, version=version)
    registry.set_challenger(version.number)
    return dataclasses.replace(result, version=version, is_new=True)


def _decide(root: Path, graph: dvc_graph.Graph, result: RetrainResult) -> RetrainResult:
    """Apply the gate to a pending version."""
    version = result.version
    if version is None or version.tags.get(promote.STATE_TAG) != promote.PENDING:
        return result
    outcome = promote.promote(version, root, root / MODELS, gate_stage.find(graph).section)
    if outcome.decision.rows:
        print(outcome.decision.table(), flush=True)
        runs.log_text(result.run_id, "promotion/decision.json", json.dumps(outcome.decision.to_dict(), indent=1))
        runs.log_text(result.run_id, "promotion/table.txt", outcome.decision.table())
    return dataclasses.replace(result, decision=outcome.decision)


def _send_waiting(root: Path) -> None:
    """Upload pending runs."""
    if experiments.restore(runs.EXPERIMENT):
        print(f"== the experiment {runs.EXPERIMENT!r} had been deleted in MLflow; restored it", flush=True)
    for run_id in run_outbox.send_all(root):
        print(f"== uploaded to MLflow: the run {run_id} of an earlier retrain", flush=True)


def _stats_files(root: Path, stage: dvc_graph.Stage) -> list[Path]:
    """The metrics file of a stage, even if DVC skipped it; empty if it has none."""
    file = logs_folder(root, stage.name.partition("@")[0]) / STATS_FILE
    return [file] if file.is_file() else []


def _parent(root: Path, graph: dvc_graph.Graph) -> str:
    """The editor that the training continued, from its summary; empty if it started from the base model."""
    for folder in model_parts(graph).values():
        file = root / folder / SUMMARY_FILE
        ancestors = json.loads(file.read_text(encoding="utf-8"))["params"].get("ancestors", ()) if file.is_file() else ()
        if ancestors:
            return str(ancestors[-1]["reference"])
    return ""


def _git(root: Path, *arguments: str) -> str:
    process = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return process.stdout.strip() if process.returncode == 0 else ""
