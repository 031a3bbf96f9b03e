"""From finished stages to the outside world: the run in MLflow, the registered version, the gate and its aliases.

What is registered and what decides stands in the `meta:` of stages in `dvc_graph.yaml`:

    meta: {register: editor}   its out becomes the part `editor` of the model
    meta: {gate: emuedit}      its metrics decide, by the row of the system `emuedit`; its params are the model's defaults
    meta: {report: true}       its outs are shown in the run
"""

import dataclasses
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emuedit.editor.package import EditSettings
from emuedit.tracking import registry, runs
from flows import dvc_graph, promotion_gate

_NOT_SERVED = ("toyworld",)  # parts of the package that a model does not need
MODEL_FILE = Path(__file__).with_name("editor_model.py")
_STATS = "stats.jsonl"
_SCORES = "emuedit.scores"


@dataclass(frozen=True)
class RetrainResult:
    """What a retrain came to."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stages that ran -> their seconds."""
    run_id: str = ""
    version: registry.ModelVersion | None = None
    new: bool = False
    """Whether this retrain registered the version."""
    decision: promotion_gate.Decision | None = None
    table: Mapping[str, promotion_gate.Scores] = field(default_factory=dict)
    """System -> task -> edit success."""

    def told(self) -> dict[str, Any]:
        """The same in plain values, for Prefect."""
        return {
            "stages": dict(self.seconds),
            "run_id": self.run_id,
            "version": self.version.number if self.version else None,
            "new": self.new,
            "promoted": self.decision.promote if self.decision else None,
            "reason": self.decision.reason if self.decision else "",
        }


def begin(root: Path) -> str:
    """Open the run of this retrain, under which the stations' runs will stand."""
    return runs.start_run("retrain", f"{socket.gethostname()}:{root}")


def fail(run_id: str, error: BaseException) -> None:
    """Close the run of a retrain that did not get through; what MLflow has to say about it does not hide the error."""
    try:
        if run_id:
            runs.end_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
    except Exception as second:  # whatever MLflow raises: the flow's own error is the one to tell
        print(f"== the run {run_id} could not be closed: {second}", flush=True)


def known(graph: dvc_graph.Graph) -> RetrainResult | None:
    """The outcome, if what the stages hold now is registered already."""
    version = registry.find_version(content(graph)) if parts(graph) else None
    return RetrainResult(run_id=version.run_id, version=version, table=table(graph)) if version else None


def finish(root: Path, graph: dvc_graph.Graph, run_id: str, seconds: Mapping[str, float], register: bool) -> RetrainResult:
    """Write the run down; register what is new and let the gate decide."""
    shown = {
        str(path): root / path for stage in graph.stages for path in (stage.outs if stage.meta.get("report") else stage.plots)
    }
    metrics = {path.as_posix(): root / path for path in graph.metrics}
    params = root / "params.yaml"
    runs.log_run(
        run_id,
        yaml.safe_load(params.read_text(encoding="utf-8")) if params.exists() else {},
        merged(graph),
        {**lineage(root, graph), **_stats(root, graph), **{f"seconds.{name}": f"{took:.1f}" for name, took in seconds.items()}},
        {name: path for name, path in {**metrics, **shown}.items() if path.exists()},
    )
    outcome = RetrainResult(seconds, run_id, table=table(graph))
    if register and parts(graph):
        found = registry.find_version(content(graph))
        outcome = dataclasses.replace(outcome, version=found) if found else _register(root, graph, outcome)
    runs.end_run(run_id, "FINISHED")
    return outcome


def parts(graph: dvc_graph.Graph) -> dict[str, Path]:
    """Parts of the model -> their folders, as the stages say."""
    return {name: path for stage in graph.stages for name, path in stage.parts().items()}


def content(graph: dvc_graph.Graph) -> str:
    """The same for models that hold and score the same."""
    return graph.content_of([*parts(graph).values(), *graph.metrics])


def merged(graph: dvc_graph.Graph) -> dict[str, Any]:
    """All metrics files in one mapping. Of a number that two files have, the later one is kept under its file's name."""
    found: dict[str, Any] = {}
    for path in graph.metrics:
        if (graph.root / path).exists():
            for key, value in runs.read_metrics_file(graph.root / path).items():
                found[key if key not in found else f"{path.as_posix()}.{key}"] = value
    return found


def table(graph: dvc_graph.Graph) -> dict[str, promotion_gate.Scores]:
    """System -> task -> edit success, empty when nothing measured it."""
    return dict(merged(graph).get(promotion_gate.METRIC, {}))


def lineage(root: Path, graph: dvc_graph.Graph) -> dict[str, str]:
    """Tags that say what a result came from: commit, `dvc_graph.lock`, the hash of every out."""
    commit = _git(root, "rev-parse", "HEAD")
    tags = {"emuedit.content": content(graph), "dvc.lock": graph.lock_hash()}
    tags |= (
        {
            "git.commit": commit,
            "git.dirty": str(bool(_git(root, "status", "--porcelain", "--", ".", f":(exclude){dvc_graph.LOCK}"))).lower(),
        }
        if commit
        else {}
    )
    return tags | {f"dvc.{path}": md5 for path, md5 in graph.hashes().items()}


def _register(root: Path, graph: dvc_graph.Graph, outcome: RetrainResult) -> RetrainResult:
    judges = {stage.name: stage.meta["gate"] for stage in graph.stages if "gate" in stage.meta}
    if len(judges) != 1:
        raise promotion_gate.GateError(
            f"want one stage with `meta: {{gate: <system>}}` in dvc_graph.yaml, got {sorted(judges) or 'none'}"
        )
    ((judge, system),) = judges.items()
    metrics = merged(graph)
    candidate, identity = promotion_gate.scores(metrics, system), promotion_gate.scores(metrics, promotion_gate.IDENTITY)
    champion = registry.version_at("champion")
    decision = promotion_gate.decide(candidate, identity, _scores(champion) if champion else None)
    version = registry.register_version(
        outcome.run_id,
        {name: root / path for name, path in parts(graph).items()},
        MODEL_FILE,
        Path(registry.__file__).parents[1],
        _NOT_SERVED,
        defaults(root, judge),
        {**lineage(root, graph), _SCORES: ",".join(f"{key}={value}" for key, value in candidate.items()), "gate": decision.reason,
         "gate.promoted": str(decision.promote).lower(), "run_id": outcome.run_id},
    )  # fmt: skip
    registry.set_aliases(version.number, decision.promote, champion.number if champion else None)
    return dataclasses.replace(outcome, version=version, new=True, decision=decision)


def defaults(root: Path, judge: str) -> dict[str, float | int]:
    """EditSettings of an edit as the judging stage measured it, so that what is served is what was measured."""
    params = root / "params.yaml"
    section = (yaml.safe_load(params.read_text(encoding="utf-8")) or {}).get(judge.split("@")[0], {}) if params.exists() else {}
    return {"seed": 0, **{key: section.get(key, value) for key, value in dataclasses.asdict(EditSettings()).items()}}


def _scores(version: registry.ModelVersion) -> dict[str, float | None]:
    """The row of a version, as it was measured when it was registered."""
    pairs = (one.split("=") for one in version.tags.get(_SCORES, "").split(",") if "=" in one)
    return {key: None if value == "None" else float(value) for key, value in pairs}


def _stats(root: Path, graph: dvc_graph.Graph) -> dict[str, str]:
    """Tags that lead to the runs of stations, those that DVC skipped included."""
    found = {}
    for stage in graph.stages:
        for out in stage.outs:
            for stats in sorted((root / out).rglob(_STATS)) if (root / out).is_dir() else ():
                if run_id := runs.run_id_of(stats):
                    found[f"run.{stage.name}"] = run_id
    return found


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
