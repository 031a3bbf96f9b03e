"""Check that a clone has every commit whose data must be kept, since a garbage collection deletes all other data."""

from collections.abc import Iterator
from pathlib import Path

from emuedit.data.name_list import first_names
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.data_manifest import read_latest
from emuedit.operations.storage.dvc_remote import run_git
from emuedit.operations.storage.remote_error import RemoteError

DATA_FILES = ("dvc.lock", "*/dvc.lock", "*.dvc")
"""Git patterns for the files that list data."""
_REFS = ("refs/heads/*", "refs/tags/*", "refs/exps/*")
"""Patterns for the branches, tags and DVC experiments of a git remote."""


def check_clone(root: Path, bucket: Bucket) -> None:
    """Raise RemoteError with all reasons, unless this clone has the full history and other worktrees are committed."""
    if reasons := [*_history_reasons(root), *_worktree_reasons(root), *_manifest_reasons(root, bucket)]:
        raise RemoteError("\n  - ".join(["refused, because data that is still needed could be deleted:", *reasons]))


def _history_reasons(root: Path) -> Iterator[str]:
    if run_git(["rev-parse", "--is-shallow-repository"], root).strip() == "true":
        yield "the clone is shallow and lacks older commits; run `git fetch --unshallow`"
        return
    for remote in run_git(["remote"], root).split():
        try:
            listing = run_git(["ls-remote", remote, *_REFS], root).splitlines()
        except RemoteError as error:
            yield f"the branches of the git remote {remote} cannot be listed; fix or remove the remote ({error})"
            continue
        pairs = [line.split("\t") for line in listing if not line.endswith("^{}")]
        unknown = [name.removeprefix("refs/heads/") for commit, name in pairs if not _is_reachable(commit, root)]
        if unknown:
            words = {
                f"{remote} 'refs/exps/*:refs/exps/*'" if name.startswith("refs/exps/") else f"--tags {remote}" for name in unknown
            }
            fix = " and ".join(f"`git fetch {word}`" for word in sorted(words))
            yield f"not fetched from the git remote {remote}: {first_names(unknown)}; {fix}"


def _worktree_reasons(root: Path) -> Iterator[str]:
    here = Path(run_git(["rev-parse", "--show-toplevel"], root).strip()).resolve()
    for record in run_git(["worktree", "list", "--porcelain"], root).strip().split("\n\n"):
        fields = dict(line.partition(" ")[::2] for line in record.splitlines())
        folder = Path(fields["worktree"])
        if "bare" in fields or not folder.is_dir() or folder.resolve() == here:
            continue
        if run_git(["status", "--porcelain", "--", *DATA_FILES], folder).strip():
            yield f"the worktree {folder} has uncommitted changes in dvc.lock; commit or undo them there"
        if not _is_reachable(fields["HEAD"], root):
            yield f"the worktree {folder} is at a commit without a branch; run `git branch NAME {fields['HEAD'][:10]}`"


def _manifest_reasons(root: Path, bucket: Bucket) -> Iterator[str]:
    latest = read_latest(bucket)
    if latest and not _is_reachable(latest.commit, root):
        yield (
            f"commit {latest.commit[:10]} of the published manifest {latest.number} is on no branch or tag here; "
            f"`git fetch`, or ask its publisher, {latest.publisher}"
        )


def _is_reachable(commit: str, root: Path) -> bool:
    """Whether the commit is reachable from a branch, tag, remote-tracking branch, DVC experiment or HEAD of this clone."""
    try:
        run_git(["cat-file", "-e", commit], root)
    except RemoteError:  # the commit is not in this clone
        return False
    kept = ["--branches", "--tags", "--remotes", "--glob=refs/exps/*", "HEAD"]
    return not run_git(["rev-list", "--max-count=1", commit, "--not", *kept], root).strip()
