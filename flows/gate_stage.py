"""The stage whose metrics the promotion gate uses: the one with `meta: {gate: <system>}` in `dvc.yaml`."""

import contextlib
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit import config
from emuedit.config import ParamsError
from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark
from emuedit.promotion import promote
from emuedit.promotion.gate import GateError
from flows.dvc_graph import Graph


@dataclass(frozen=True)
class GateStage:
    """The gate stage of a pipeline."""

    root: Path
    section: str
    """Its section of `params.yaml`."""
    system: str
    """The evaluated system that represents the model."""

    @property
    def params(self) -> dict[str, Any]:
        """The stage's section of `params.yaml`."""
        file = self.root / config.PARAMS_FILE
        return (config.read_yaml(file).get(self.section) or {}) if file.exists() else {}

    @property
    def edit_settings(self) -> EditSettings:
        """The stage's edit settings, so that the model is served as it was measured."""
        return EditSettings().with_changes(self.params.get("settings", {}))


def find(graph: Graph) -> GateStage:
    """The gate stage. Raises GateError unless there is exactly one."""
    gates = {stage.name: str(stage.meta["gate"]) for stage in graph.stages if "gate" in stage.meta}
    if len(gates) != 1:
        stages = ", ".join(sorted(gates)) or "none"
        raise GateError(f"want one stage with `meta: {{gate: <system>}}` in dvc.yaml, got {stages}")
    ((name, system),) = gates.items()
    return GateStage(graph.root, name.split("@")[0], system)


def measuring_slot(root: Path) -> AbstractContextManager[object]:
    """The GPU slot for measuring models in this process, if the gate stage has `meta: {gpu: true}`; else nothing is waited for.

    The file is read without DVC, which takes seconds. Raises the errors of `gpu_slot`.
    """
    file = root / PIPELINE_FILE
    stages = (config.read_yaml(file).get("stages") or {}) if file.exists() else {}
    metas = [stage.get("do", stage).get("meta") or {} for stage in stages.values()]  # `do`: of a foreach
    if not any("gate" in meta and meta.get("gpu") for meta in metas):
        return contextlib.nullcontext()
    from flows.gpu_slot import gpu_slot  # imports Prefect

    return gpu_slot(threading.Event())


def check(graph: Graph) -> None:
    """Raise GateError or ParamsError, before anything runs, for settings with which the gate could not decide later."""
    stage = find(graph)
    n_edits, min_edits = stage.params.get("n_edits"), promote.read_gate_settings(graph.root).min_edits
    if n_edits is None and "n_edits" in stage.params:
        _check_usable(stage, min_edits)
    if isinstance(n_edits, int) and n_edits < min_edits:
        raise ParamsError(
            f"{config.PARAMS_FILE}: want {stage.section}.n_edits of at least promotion.min_edits, {min_edits}, got {n_edits}; "
            "change one of them, or register nothing (--no-register)"
        )


def _check_usable(stage: GateStage, min_edits: int) -> None:
    """Raise ParamsError for a task with fewer usable edits than `min_edits` in the benchmark, all of which are measured."""
    source = benchmark.load(config.read_yaml(stage.root / config.PARAMS_FILE)["world"]["benchmark"])
    split = stage.params.get("split", "held_out")
    usable = {task: benchmark.count_usable(source, task, split) for task in stage.params["tasks"]}
    if too_small := {task: n for task, n in usable.items() if n < min_edits}:
        raise ParamsError(
            f"{config.PARAMS_FILE}: want at least promotion.min_edits, {min_edits}, usable edits of each task for "
            f"{stage.section}.n_edits: null, got {too_small}; add rows to edits.csv, leave the task out of "
            f"{stage.section}.tasks, lower promotion.min_edits, or register nothing (--no-register)"
        )
