"""The origin of results, as tags of a run and its version: commit, uncommitted changes, params, and the hash of every output.

Commit, changes and params are read before the first stage, because people edit files and commit while a retrain runs. Outputs
that are up to date then are outputs of these files too. A stage that starts after an edit does use the edited code: `dvc.lock`
has its hash.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit import config, git
from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.data.text_hash import hex_hash
from emuedit.dvc_lock import LOCK_FILE
from emuedit.editor.settings import EditSettings
from emuedit.promotion import lineage
from emuedit.tracking import registry, runs, service_errors
from emuedit.tracking.registry import ModelVersion
from flows import dvc_graph

DIRTY_TAG, CHANGES_TAG, BRANCH_TAG = "git.dirty", "git.changes", "git.branch"
BRANCH_COMMIT_TAG = "git.branch_commit"
"""Tag of a version with the commit of the branch of results that has its `dvc.lock`, metrics, `params.yaml` and `dvc.yaml`."""
_OUT_PREFIX = "dvc."


@dataclass(frozen=True)
class StartState:
    """The workspace at the start of a retrain."""

    commit: str = ""
    """The commit that was checked out; empty without git."""
    changed: tuple[str, ...] = ()
    """Tracked files with uncommitted changes."""
    untracked: tuple[str, ...] = ()
    """Files that git neither tracks nor ignores."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> content of `dvc.yaml`, `params.yaml` and `uv.lock`, where they exist."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Content of `params.yaml`."""

    def edit_settings(self, section: str) -> EditSettings:
        """The edit settings of the section of an evaluation, with which the model is served as it was measured."""
        return EditSettings().with_changes((self.params.get(section) or {}).get("settings", {}))

    def write_files(self, root: Path, folder: Path) -> dict[str, Path]:
        """Write the files to a folder, with the current `dvc.lock`, for the run of a version. Returns artifact name -> file."""
        contents = {**self.files, **_read_files(root, [LOCK_FILE])}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return {f"{lineage.FOLDER}/{name}": folder / name for name in contents}


def read_start(root: Path) -> StartState:
    """The current state of the workspace.

    Raises ParamsError for a `params.yaml` that cannot be read, and GitError if git cannot list the changes since the commit.
    """
    file = root / config.PARAMS_FILE
    files = _read_files(root, [name for name in lineage.FILES if name != LOCK_FILE])
    params = config.read_yaml(file) if file.exists() else {}
    commit = git.try_run(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return StartState(files=files, params=params)
    changed = git.run(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", ".", f":(exclude){LOCK_FILE}")
    untracked = git.run(root, "ls-files", "--others", "--exclude-standard", "-z")
    return StartState(commit, _split(changed), _split(untracked), files, params)


def make_tags(graph: dvc_graph.Graph, content: str, at_start: StartState) -> dict[str, str]:
    """Tags with the origin of the current outputs. `content`: their content tag."""
    tags = {registry.CONTENT_TAG: content, "dvc.lock": graph.lock_hash(), "parent": _parent(graph)}
    if "uv.lock" in at_start.files:
        tags["uv.lock"] = hex_hash(at_start.files["uv.lock"])
    if at_start.commit:
        changes = uncommitted_inputs(graph, at_start)
        tags |= {"git.commit": at_start.commit, DIRTY_TAG: str(bool(changes)).lower(), CHANGES_TAG: ", ".join(changes)}
    return tags | {f"{_OUT_PREFIX}{path}": md5 for path, md5 in graph.hashes().items()} | _number_formats(graph)


def check_outs(graph: dvc_graph.Graph) -> None:
    """Raise GraphError for an out whose path MLflow would refuse in the key of a tag, after the training."""
    outs = [out.as_posix() for stage in graph.stages for out in stage.outs]
    if refused := [path for path in outs if not runs.is_valid_key(f"{_OUT_PREFIX}{path}")]:
        raise dvc_graph.GraphError(
            f"want outs of letters, digits and `_-./ :` only, which the registry accepts in a tag of {runs.MAX_KEY_CHARS} "
            f"characters, got {refused[0]}; rename it in dvc.yaml, or register nothing (--no-register)"
        )


def uncommitted_inputs(graph: dvc_graph.Graph, at_start: StartState) -> list[str]:
    """Files without which the commit does not give these results: changed tracked files, and untracked inputs of a stage.

    Outputs of stages do not count. Other untracked files, such as notes, do not change a result. An input that `dvc add` tracks
    counts by its `.dvc` file.
    """
    inputs, outputs = _locked_paths(graph)
    return [path for path in (*at_start.changed, *_only_below(inputs, at_start.untracked)) if not _is_below(path, outputs)]


def tag_published(version: ModelVersion | None, branch: str, commit: str) -> None:
    """Tag a version with the commit of the branch of results. An error of MLflow is printed: the branch is complete."""
    if version is None or not commit:
        return
    try:
        with service_errors.converted():
            registry.set_version_tags(version.number, {BRANCH_TAG: branch, BRANCH_COMMIT_TAG: commit})
    except service_errors.ServiceError as error:
        print(f"== version {version.number} was not tagged with the commit {commit[:8]} of {branch}: {error}", flush=True)


def _number_formats(graph: dvc_graph.Graph) -> dict[str, str]:
    """Tags `dtype.<stage>` with the number format of each stage, from its summaries; all formats of the items of a matrix."""
    formats: dict[str, set[str]] = {}
    for stage in graph.stages:
        for path in (graph.root / out / SUMMARY_FILE for out in stage.outs):
            params = json.loads(path.read_text(encoding="utf-8"))["params"] if path.is_file() else {}
            if "dtype" in params:
                formats.setdefault(f"dtype.{stage.name.partition('@')[0]}", set()).add(params["dtype"])
    return {key: ", ".join(sorted(names)) for key, names in formats.items()}


def _parent(graph: dvc_graph.Graph) -> str:
    """The editor that the training continued, from its summary; empty if it started from the base model."""
    for folder in (path for stage in graph.stages for path in stage.parts().values()):
        file = graph.root / folder / SUMMARY_FILE
        ancestors = json.loads(file.read_text(encoding="utf-8"))["params"].get("ancestors", ()) if file.is_file() else ()
        if ancestors:
            return str(ancestors[-1]["reference"])
    return ""


def _read_files(root: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in names if (root / name).is_file()}


def _locked_paths(graph: dvc_graph.Graph) -> tuple[list[str], list[str]]:
    """The inputs and the outputs of all stages."""
    stages = graph.locked_stages().values()
    inputs, outputs = ([item["path"] for stage in stages for item in stage.get(kind, ())] for kind in ("deps", "outs"))
    return inputs, outputs


def _only_below(folders: Sequence[str], paths: Iterable[str]) -> list[str]:
    """The paths in the folders; a `.dvc` file counts as what it tracks."""
    return [path for path in paths if _is_below(path.removesuffix(".dvc"), folders)]


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip('/')}/") for folder in folders)


def _split(output: str) -> tuple[str, ...]:
    return tuple(path for path in output.split("\0") if path)
