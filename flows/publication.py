"""After a successful retrain, optionally push the data to the remote, and commit `dvc.lock` and metrics to a branch.

A commit of that branch contains the `params.yaml` and `dvc.yaml` that produced the results, and the committed code, so that its
checkout is up to date for DVC. Metrics inside an out of a stage are committed below `metrics/`, because DVC does not save an out
in which git tracks a file.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emuedit.failures import FailureKind
from emuedit.operations import dvc_remote
from emuedit.operations.remote_error import RemoteError
from emuedit.tracking.runs import flatten
from flows import push_access, result_origin
from flows.dvc_graph import LOCK, Graph
from flows.failure_kinds import RETRY_DELAYS_S

PIPELINE_FILES = (Path("dvc.yaml"), Path("params.yaml"))
"""Files that determine a result and are often edited without a commit."""
METRICS = Path("metrics")
"""Folder of the branch for copies of metrics files inside outs of stages."""
TEMPORARY = ("/tmp", "/dev/shm")  # noqa: S108 - nothing is written there
_PUSH_DELAYS_S = RETRY_DELAYS_S[:2]
_MAX_METRIC_LINES = 40


@dataclasses.dataclass(frozen=True)
class ResultSource:
    """The sources of results: the commit that is checked out, and the pipeline files in the working tree."""

    commit: str
    blobs: Mapping[Path, str]
    """Existing `PIPELINE_FILES` -> git object with their content."""
    uncommitted: tuple[str, ...]
    """Tracked Python files with uncommitted changes."""
    untracked: tuple[str, ...] = ()
    """Python files that git neither tracks nor ignores; code of the results if they are inputs of a stage."""


class PublicationError(RuntimeError):
    """Raised if data cannot be pushed or a branch cannot be written. No results are lost."""


def check(graph: Graph, push: bool, branch: str) -> None:
    """Raise PublicationError, before anything runs, if `publish` would fail: no writable remote, or an unusable branch."""
    root = graph.root
    if push:
        check_remote(root)
        check_access(root)
    if branch:
        _check_branch(root, branch)
        if taken := [str(path) for path in _metrics_paths(graph) if graph.is_cached(path)]:
            raise PublicationError(
                f"{taken[0]} is both a stage output and the path of a metrics file on the branch; rename the output in dvc.yaml"
            )
        _git(root, "rev-parse", "--verify", "HEAD")
        for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            if not _git(root, "var", name, check=False):
                raise PublicationError(
                    "want a name and an address for commits, got none; set git config user.name and user.email"
                )


def read_source(root: Path) -> ResultSource:
    """The source of the results. Read it before the first stage runs, since people edit files during training."""
    blobs = {path: _git(root, "hash-object", "-w", "--", str(path)) for path in PIPELINE_FILES if (root / path).is_file()}
    changed = _git(root, "diff", "--name-only", "--relative", "HEAD", "--", "*.py", check=False).splitlines()
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", "*.py", check=False).splitlines()
    return ResultSource(_git(root, "rev-parse", "--verify", "HEAD"), blobs, tuple(changed), tuple(untracked))


def publish(
    graph: Graph, push: bool, branch: str, metrics: Mapping[str, Any], reason: str, source: ResultSource | None = None
) -> str:
    """Push the data, if `push`, then commit `dvc.lock` and the metrics with their `source` to `branch`, unless it is empty.

    Returns the commit of the branch; empty without a branch. Idempotent: the next retrain retries what could not be published.
    Raises PublicationError.
    """
    if push:
        push_data(graph.root)
        print("== pushed the data", flush=True)
    if not branch:
        return ""
    files = {Path(LOCK): Path(LOCK), **_metrics_paths(graph)}
    source = source or read_source(graph.root)
    new = result_origin.only_inputs(graph, source.untracked)
    source = dataclasses.replace(source, uncommitted=(*source.uncommitted, *new))
    commit = commit_results(graph.root, branch, files, metrics, f"Retrain ({reason})", source)
    print(f"== {branch} is at {commit[:8]}", flush=True)
    return commit


def check_access(root: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Raise PublicationError if no object can be written to the remote. Retries only if the store does not answer or fails."""
    for delay_s in (*_PUSH_DELAYS_S, None):
        try:
            push_access.try_write(root)
            return
        except RemoteError as error:
            if delay_s is None or push_access.failure_kind(error) is not FailureKind.NETWORK:
                raise PublicationError(f"data could not be pushed after this run: {error}") from error
            print(f"== the remote cannot be written ({error}); retrying in {delay_s:g} s", flush=True)
            sleep(delay_s)


def push_data(root: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Push the data in `dvc.lock` to the remote. Raises PublicationError.

    After a failure it tries to write one object, since DVC does not report the kind of a failure. Wrong credentials and settings
    are an error at once; if the store does not answer or fails, or works again by then, the push is repeated.
    """
    command = [sys.executable, "-m", "dvc", "push"]
    for delay_s in (*_PUSH_DELAYS_S, None):
        process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if process.returncode == 0:
            return
        lines = (process.stderr or process.stdout).strip().splitlines()
        problem = lines[-1] if lines else f"exit status {process.returncode}"
        if delay_s is not None:
            _raise_if_permanent(root)
            print(f"== dvc push failed ({problem}); retrying in {delay_s:g} s", flush=True)
            sleep(delay_s)
    raise PublicationError(f"data were not pushed: {problem}; run `emuedit remote check` for details, and `dvc push` to retry")


def _raise_if_permanent(root: Path) -> None:
    """Raise PublicationError if the remote cannot be written for another reason than the network."""
    try:
        push_access.try_write(root)
    except RemoteError as error:
        if push_access.failure_kind(error) is not FailureKind.NETWORK:
            raise PublicationError(f"data were not pushed: {error}; then run `dvc push` to retry") from error


def commit_results(
    root: Path,
    branch: str,
    files: Mapping[Path, Path],
    metrics: Mapping[str, Any],
    title: str,
    source: ResultSource | None = None,
) -> str:
    """Commit current files to a branch, with the code and the pipeline files that produced them. Returns the commit.

    files: path in the branch -> path below `root`; a file committed under another path is removed from its original path.
    source: None: the current one. Its commit provides all other files, and is the second parent unless the branch contains it.
    `params.yaml` and `dvc.yaml` are those of the source, even if HEAD has others, since they determine the result. Uncommitted
    code is not included; the commit message lists it. The working tree, the index and the checked-out branch are not touched.
    The message is `title` and the changes of the metrics on the branch. Raises PublicationError if git fails. If the tree equals
    that of the branch, no commit is created; a missing branch is still created.
    """
    reference = _check_branch(root, branch)
    source = source or read_source(root)
    tip = _git(root, "rev-parse", "--verify", "--quiet", reference, check=False) or source.commit
    present = {path: file for path, file in files.items() if (root / file).is_file()}
    before = [_show(root, tip, path) for path in present if path.suffix == ".json"]
    blobs = {**source.blobs, **{path: _git(root, "hash-object", "-w", "--", str(file)) for path, file in present.items()}}
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git(root, "read-tree", source.commit, environment=index)
        for path, file in files.items():
            if path != file:
                _git(root, "update-index", "--force-remove", "--", file.as_posix(), environment=index)
        for path, blob in blobs.items():
            _git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path.as_posix()}", environment=index)
        tree = _git(root, "write-tree", environment=index)
    if tree == _git(root, "rev-parse", f"{tip}^{{tree}}"):
        if not _exists(root, reference):
            _git(root, "update-ref", reference, tip, "")
        return tip
    old = {key: value for values in before for key, value in flatten(values)}
    notes = [f"made with uncommitted changes: {', '.join(source.uncommitted)}"] if source.uncommitted else []
    message = "\n".join([title, "", *metric_changes(old, dict(flatten(metrics))), *notes])
    parents = [tip] if _git(root, "merge-base", source.commit, tip, check=False) == source.commit else [tip, source.commit]
    commit = _git(root, "commit-tree", tree, *(word for parent in parents for word in ("-p", parent)), "-m", message)
    _git(root, "update-ref", reference, commit, tip if _exists(root, reference) else "")
    return commit


def metric_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as `edit_success.emuedit.overall 0.46 -> 0.51 (+0.05)` for changed metrics; at most 40."""
    lines = []
    for key, value in new.items():
        earlier = old.get(key)
        if earlier == value or not isinstance(value, int | float):
            continue
        change = f" -> {value:g} ({value - earlier:+.4g})" if isinstance(earlier, int | float) else f" (new) {value:g}"
        lines.append(f"{key} {earlier:g}{change}" if isinstance(earlier, int | float) else f"{key}{change}")
    hidden = len(lines) - _MAX_METRIC_LINES
    return lines[:_MAX_METRIC_LINES] + ([f"and {hidden} more"] if hidden > 0 else [])


def _metrics_paths(graph: Graph) -> dict[Path, Path]:
    """Path in the branch -> metrics file."""
    return {METRICS / path if graph.is_cached(path) else path: path for path in graph.metrics}


def check_remote(root: Path) -> None:
    """Raise PublicationError if DVC has no default remote, or if it is a folder that a container or restart removes."""
    try:
        settings = dvc_remote.read_settings(root)
    except RemoteError as error:
        raise PublicationError(str(error)) from error
    name = settings.get("core.remote")
    if f"remote.{name}.url" not in settings:
        missing = f"{name}, which has no URL" if name else "none"
        raise PublicationError(f"want a default DVC remote to push data to, got {missing}; {dvc_remote.INIT}")
    _check_folder(root, settings[f"remote.{name}.url"])


def _check_folder(root: Path, url: str) -> None:
    """Raise PublicationError for a remote in a temporary folder, unless the workspace is there too."""
    if "://" in url:
        return
    remote, workspace = Path(url).expanduser().resolve(), root.resolve()
    for folder in {tempfile.gettempdir(), *TEMPORARY}:
        temporary = Path(folder).resolve()
        if remote.is_relative_to(temporary) and not workspace.is_relative_to(temporary):
            raise PublicationError(
                f"want a permanent DVC remote, got {remote}, which is lost with the temporary folder {folder}; "
                "`emuedit remote init --local s3://bucket/prefix` sets another one for this clone"
            )


def _check_branch(root: Path, branch: str) -> str:
    """The reference of the branch. Raises PublicationError if it is invalid, checked out in a worktree, or cannot be created."""
    reference = f"refs/heads/{branch}"
    if not _git(root, "check-ref-format", "--branch", branch, check=False):
        raise PublicationError(f"{branch!r} is not a valid branch name")
    for record in _git(root, "worktree", "list", "--porcelain").split("\n\n"):
        fields = dict(line.partition(" ")[::2] for line in record.splitlines())
        if fields.get("branch") == reference:
            place = f"{branch}, which {fields['worktree']} has checked out"
            raise PublicationError(f"want a branch that is not checked out, got {place}; name another one")
    for other in _git(root, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines():
        if other.startswith(f"{reference}/") or reference.startswith(f"{other}/"):
            raise PublicationError(
                f"want a branch that git can create, got {branch} beside {other.removeprefix('refs/heads/')}, where one would be "
                "the folder of the other; name another one"
            )
    return reference


def _exists(root: Path, reference: str) -> bool:
    return bool(_git(root, "rev-parse", "--verify", "--quiet", reference, check=False))


def _show(root: Path, commit: str, path: Path) -> Any:
    text = _git(root, "show", f"{commit}:{path.as_posix()}", check=False)
    return json.loads(text) if text else {}


def _git(root: Path, *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
    variables = {**os.environ, **(environment or {})}
    process = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False, env=variables)
    if process.returncode and check:
        reason = " ".join(process.stderr.split())[:300] or f"exit status {process.returncode}"
        raise PublicationError(f"git {arguments[0]} failed: {reason}")
    return process.stdout.strip() if process.returncode == 0 else ""
