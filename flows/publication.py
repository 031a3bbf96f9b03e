"""After a successful retrain, optionally push the data to the remote, and commit `dvc.lock` and metrics to a branch.

A commit of that branch contains the `params.yaml` and `dvc.yaml` that produced the results, and the committed code, so that its
checkout is up to date for DVC. Metrics inside an out of a stage are committed below `metrics/`, because DVC does not save an out
in which git tracks a file.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emuedit import git
from emuedit.dvc_lock import LOCK_FILE
from emuedit.failures import FailureKind
from emuedit.operations.storage import dvc_remote
from emuedit.operations.storage.remote_error import RemoteError
from emuedit.tracking.runs import flatten
from flows import push_access, result_origin
from flows.dvc_graph import Graph
from flows.failure_kinds import RETRY_DELAYS_S
from flows.result_origin import StartState

PIPELINE_FILES = (Path("dvc.yaml"), Path("params.yaml"))
"""Files that determine a result and are often edited without a commit."""
METRICS = Path("metrics")
"""Folder of the branch for copies of metrics files inside outs of stages."""
TEMPORARY = ("/tmp", "/dev/shm")  # noqa: S108 - nothing is written there
_PUSH_DELAYS_S = RETRY_DELAYS_S[:2]
_MAX_METRIC_LINES = 40


class PublicationError(RuntimeError):
    """Raised if data cannot be pushed or a branch cannot be written. No results are lost."""


def check(graph: Graph, push: bool, branch: str) -> None:
    """Raise an error, before anything runs, if `publish` would fail.

    PublicationError: no writable remote, or an unusable branch. GitError: no git, or no commit.
    """
    root = graph.root
    if push:
        check_remote(root)
        check_access(root)
    if branch:
        git.run(root, "rev-parse", "--verify", "HEAD")
        _check_branch(root, branch)
        if taken := [str(path) for path in _metrics_paths(graph) if graph.is_cached(path)]:
            raise PublicationError(
                f"{taken[0]} is both a stage output and the path of a metrics file on the branch; rename the output in dvc.yaml"
            )
        for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            if not git.try_run(root, "var", name):
                raise PublicationError(
                    "want a name and an address for commits, got none; set git config user.name and user.email"
                )


def publish(
    graph: Graph, push: bool, branch: str, metrics: Mapping[str, Any], reason: str, at_start: StartState | None = None
) -> str:
    """Push the data, if `push`, then commit `dvc.lock` and the metrics with their origin to `branch`, unless it is empty.

    at_start: the workspace before the first stage, since people edit files during training; None: as it is now.
    Returns the commit of the branch; empty without a branch. Idempotent: the next retrain retries what could not be published.
    Raises PublicationError or GitError.
    """
    if push:
        push_data(graph.root)
        print("== pushed the data", flush=True)
    if not branch:
        return ""
    files = {Path(LOCK_FILE): Path(LOCK_FILE), **_metrics_paths(graph)}
    at_start = at_start or result_origin.read_start(graph.root)
    code = [path for path in result_origin.uncommitted_inputs(graph, at_start) if path.endswith(".py")]
    note = f"made with uncommitted changes: {', '.join(code)}" if code else ""
    commit = commit_results(graph.root, branch, files, metrics, f"Retrain ({reason})", at_start, note)
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
        problem = " ".join(dvc_remote.failure_text(process.stderr or process.stdout).split())
        problem = problem or f"exit status {process.returncode}"
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
    at_start: StartState,
    note: str = "",
) -> str:
    """Commit current files to a branch, with the code and the pipeline files that produced them. Returns the commit.

    files: path in the branch -> path below `root`; a file committed under another path is removed from its original path.
    at_start: its commit provides all other files, and is the second parent unless the branch contains it. `params.yaml` and
    `dvc.yaml` are those at the start, even if HEAD has others, since they determine the result. Uncommitted code is not included.
    The working tree, the index and the checked-out branch are not touched. The message is `title`, the changes of the metrics on
    the branch, and `note`. If the tree equals that of the branch, no commit is created; a missing branch is still created.
    Raises PublicationError for a branch that cannot be used, and GitError.
    """
    reference = _check_branch(root, branch)
    tip = git.try_run(root, "rev-parse", "--verify", "--quiet", reference) or _tip_elsewhere(root, branch) or at_start.commit
    present = {path: file for path, file in files.items() if (root / file).is_file()}
    before = [_show(root, tip, path) for path in present if path.suffix == ".json"]
    with tempfile.TemporaryDirectory() as folder:
        blobs = _write_pipeline_files(root, at_start, Path(folder))
        blobs |= {path: git.run(root, "hash-object", "-w", "--", str(file)) for path, file in present.items()}
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        git.run(root, "read-tree", at_start.commit, environment=index)
        for path, file in files.items():
            if path != file:
                git.run(root, "update-index", "--force-remove", "--", file.as_posix(), environment=index)
        for path, blob in blobs.items():
            git.run(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path.as_posix()}", environment=index)
        tree = git.run(root, "write-tree", environment=index)
    if tree == git.run(root, "rev-parse", f"{tip}^{{tree}}"):
        if not _exists(root, reference):
            git.run(root, "update-ref", reference, tip, "")
        return tip
    old = {key: value for values in before for key, value in flatten(values)}
    message = "\n".join([title, "", *metric_changes(old, dict(flatten(metrics))), *([note] if note else [])])
    parents = [tip] if git.try_run(root, "merge-base", at_start.commit, tip) == at_start.commit else [tip, at_start.commit]
    commit = git.run(root, "commit-tree", tree, *(word for parent in parents for word in ("-p", parent)), "-m", message)
    git.run(root, "update-ref", reference, commit, tip if _exists(root, reference) else "")
    return commit


def _tip_elsewhere(root: Path, branch: str) -> str | None:
    """The commit of a branch of git's remotes, where this clone has none of that name; None if none has it, or they differ."""
    tips = set(git.run(root, "for-each-ref", "--format=%(objectname)", f"refs/remotes/*/{branch}").split())
    return tips.pop() if len(tips) == 1 else None


def _write_pipeline_files(root: Path, at_start: StartState, folder: Path) -> dict[Path, str]:
    """Write the pipeline files at the start as git objects, by way of a temporary `folder`. Returns path -> object."""
    blobs: dict[Path, str] = {}
    for path in PIPELINE_FILES:
        if path.name in at_start.files:
            (folder / path.name).write_bytes(at_start.files[path.name])
            blobs[path] = git.run(root, "hash-object", "-w", f"--path={path}", "--", str(folder / path.name))
    return blobs


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
    if not git.try_run(root, "check-ref-format", "--branch", branch):
        raise PublicationError(f"{branch!r} is not a valid branch name")
    for record in git.run(root, "worktree", "list", "--porcelain").split("\n\n"):
        fields = dict(line.partition(" ")[::2] for line in record.splitlines())
        if fields.get("branch") == reference:
            place = f"{branch}, which {fields['worktree']} has checked out"
            raise PublicationError(f"want a branch that is not checked out, got {place}; name another one")
    for other in git.run(root, "for-each-ref", "--format=%(refname)", "refs/heads").splitlines():
        if other.startswith(f"{reference}/") or reference.startswith(f"{other}/"):
            raise PublicationError(
                f"want a branch that git can create, got {branch} beside {other.removeprefix('refs/heads/')}, where one would be "
                "the folder of the other; name another one"
            )
    return reference


def _exists(root: Path, reference: str) -> bool:
    return bool(git.try_run(root, "rev-parse", "--verify", "--quiet", reference))


def _show(root: Path, commit: str, path: Path) -> Any:
    text = git.try_run(root, "show", f"{commit}:{path.as_posix()}")
    return json.loads(text) if text else {}
