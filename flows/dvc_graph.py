"""The pipeline as DVC reports it: stages, dependencies, and what is out of date."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit import dvc_lock
from emuedit.config import has_conflict_marks
from emuedit.data import dvc_state
from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.data.text_hash import hex_hash
from emuedit.dvc_lock import LOCK_FILE
from flows import retrain_lock


class GraphError(ValueError):
    """Raised if DVC cannot read the pipeline."""


@dataclass(frozen=True)
class Stage:
    """One stage, with `foreach` and `matrix` expanded. Paths are relative to the root."""

    name: str
    """The name for `dvc repro`, e.g. `pairs` or `pairs@add`."""
    after: tuple[str, ...] = ()
    """Stages whose outputs this stage reads."""
    outs: tuple[Path, ...] = ()
    plots: tuple[Path, ...] = ()
    """The outs declared as plots."""
    cached: tuple[Path, ...] = ()
    """The outs in DVC's cache. DVC does not save an out in which git tracks a file."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """`meta:` of the stage, for flows."""

    @property
    def retries(self) -> int:
        """Number of retries after a failure: `meta: {retries: 2}`."""
        return int(self.meta.get("retries", 0))

    @property
    def needs_gpu(self) -> bool:
        """Whether the stage holds the GPU slot while it runs: `meta: {gpu: true}`."""
        return bool(self.meta.get("gpu", False))

    @property
    def timeout_s(self) -> float | None:
        """Time limit in seconds: `meta: {timeout_s: 3600}`; None: no limit."""
        return float(self.meta["timeout_s"]) if "timeout_s" in self.meta else None

    def parts(self) -> dict[str, Path]:
        """The parts of the registered model: `meta: {register: editor}` or `meta: {register: {editor: models/editor}}`."""
        registered = self.meta.get("register", {})
        if isinstance(registered, str):
            if len(self.outs) != 1:
                outs = [*map(str, self.outs)]
                raise GraphError(f"stage {self.name}: want one out for meta.register {registered!r}, got {outs}; name it")
            return {registered: self.outs[0]}
        return {name: Path(path) for name, path in registered.items()}


@dataclass(frozen=True)
class Graph:
    """The pipeline below one root, in an order in which it can run."""

    root: Path
    stages: tuple[Stage, ...]
    metrics: tuple[Path, ...]
    """Metrics files, of stages and of the pipeline, relative to the root."""
    changed: Mapping[str, tuple[str, ...]]
    """Stages that are out of date themselves -> reasons. Stages that only follow such a stage are not included."""

    def stale(self, force: bool = False) -> dict[str, tuple[str, ...]]:
        """Stages to run, in order -> reasons: stages out of date and those that follow them, or all stages if `force`."""
        stale: dict[str, tuple[str, ...]] = {}
        locked = self.locked_stages()
        for stage in self.stages:
            reasons = [*self.changed.get(stage.name, ()), *(f"follows {name}" for name in stage.after if name in stale)]
            if force:
                reasons = ["forced"]
            elif reasons and stage.name not in locked:
                reasons = ["never run here"]  # DVC calls all its deps modified
            if reasons:
                stale[stage.name] = tuple(reasons)
        return stale

    def up_to(self, target: str) -> set[str]:
        """A stage, or all items of a `foreach`, and their upstream stages. Raises GraphError for an unknown name."""
        by_name = {stage.name: stage for stage in self.stages}
        pending = [name for name in by_name if target in (name, name.partition("@")[0])]
        if not pending:
            raise GraphError(f"want a stage out of {', '.join(by_name)}, got {target!r}")
        names: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in names:
                names.add(name)
                pending += by_name[name].after
        return names

    def hashes(self) -> dict[str, str]:
        """Path of each out in `dvc.lock` -> its hash."""
        return dvc_lock.output_hashes(self.locked_stages())

    def is_cached(self, path: Path) -> bool:
        """Whether a path is an out in DVC's cache, or below one."""
        return any(path.is_relative_to(out) for stage in self.stages for out in stage.cached)

    def lock_hash(self) -> str:
        """16 hex digits (blake2b) of `dvc.lock`; empty if there is none."""
        return _hash(self.root / LOCK_FILE)

    def content_of(self, paths: Iterable[Path]) -> str:
        """16 hex digits (blake2b) of the current content of these outs, independent of the rest of `dvc.lock`."""
        hashes = self.hashes()
        entries = sorted((path.as_posix(), hashes.get(path.as_posix()) or _hash(self.root / path)) for path in paths)
        return hex_hash(json.dumps(entries).encode())

    def locked_stages(self) -> dict[str, Any]:
        """The stages in `dvc.lock`: command, deps, params and outs with their hashes. Empty if there is no such file.

        Raises LockFileError.
        """
        return dvc_lock.read_stages(self.root)


def read(root: str | Path) -> Graph:
    """Read the current pipeline. Waits for DVC's lock and holds it for a moment.

    Raises GraphError if there is no pipeline, if DVC cannot read it, or if another run uses the same folder, and LockError if
    files in the folder cannot be locked, also with DVC's `core.hardlink_lock`: the lock of a retrain needs flock anyway.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root = Path(root).resolve()
    os.environ.update(dvc_state.variables(root))  # for the processes that run the stages and push, too
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            retrain_lock.check(Path(repo.tmp_dir))
            stages = tuple(_ordered(repo.index.graph, repo.index.stages, root))
            metrics = {Path(*key) for keys in repo.index.metric_keys.values() for key in keys}
            changed = {name: tuple(_reasons(entries)) for name, entries in repo.status().items()}
    except DvcException as error:
        if "is not a git repository" in str(error):
            advice = "run `git init`, or in a copy without git `dvc config --local core.no_scm true`"
            raise GraphError(f"want a git repository in {root}, which DVC requires, got none; {advice}") from error
        raise GraphError(f"DVC cannot read the pipeline in {root}: {error}; {_advice(root, error)}") from error
    except OSError as error:  # from the folders of DVC's locks and state
        advice = "fix the permissions, or set DVC_SITE_CACHE_DIR"
        raise GraphError(f"DVC cannot use {error.filename}: {error.strerror}; {advice}") from error
    if not stages:
        raise GraphError(f"want stages in {root / 'dvc.yaml'}, got none")
    return Graph(root, stages, tuple(sorted(metrics)), changed)


def _advice(root: Path, error: Exception) -> str:
    """What to do if DVC cannot read one of its files."""
    if has_conflict_marks(root / LOCK_FILE):
        return f"{LOCK_FILE} contains merge conflict markers; delete it, and finished results are taken from DVC's cache"
    if has_conflict_marks(root / PIPELINE_FILE):
        return f"{PIPELINE_FILE} contains merge conflict markers; resolve the conflict"
    if str(error).endswith(f"{LOCK_FILE}' validation failed"):
        return f"it is damaged; {dvc_lock.RESTORE}"
    if "not inside of a DVC repository" in str(error):
        return "run it in the project's folder; if .dvc is missing there, run `git checkout -- .dvc` or `dvc init`"
    if "rwlock" in str(error).lower():
        return "if no other DVC command runs here, delete .dvc/tmp/rwlock, left by a killed command"
    return "run `dvc status` for details"


def _ordered(graph: Any, stages: Sequence[Any], root: Path) -> Iterator[Stage]:
    """DVC's stages, each after its dependencies, otherwise in the order of `dvc.yaml`."""
    from networkx import lexicographical_topological_sort

    rank = {id(stage): number for number, stage in enumerate(stages)}
    for stage in lexicographical_topological_sort(graph.reverse(), key=lambda stage: rank[id(stage)]):
        if stage.is_data_source:  # a file added by `dvc add`, which no stage produces
            continue
        yield Stage(
            stage.addressing,
            tuple(sorted(dep.addressing for dep in graph.successors(stage) if not dep.is_data_source)),
            tuple(Path(out.fs_path).relative_to(root) for out in stage.outs),
            tuple(Path(out.fs_path).relative_to(root) for out in stage.outs if out.plot),
            tuple(Path(out.fs_path).relative_to(root) for out in stage.outs if out.use_cache),
            dict(stage.meta or {}),
        )


def _reasons(status: Any) -> Iterator[str]:
    """The entries of `dvc status` for one stage as short texts."""
    for entry in [status] if isinstance(status, str) else status:
        if isinstance(entry, str):  # "changed command", "always changed"
            yield entry
            continue
        for kind, paths in entry.items():
            for path, state in paths.items():
                words = ", ".join(f"{key} {value}" for key, value in state.items()) if isinstance(state, dict) else state
                yield f"{kind.removeprefix('changed ').removesuffix('s')} {path}: {words}"


def _hash(path: Path) -> str:
    return hex_hash(path.read_bytes()) if path.is_file() else ""
