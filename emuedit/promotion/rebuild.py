"""Reproduce a registered version from its commit, in a clean worktree, and check whether it is identical.

Outs of a stage with `meta: {reproducible: false}` in `dvc.yaml` are not compared: the report of the validation depends on the
champion of its day.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.tracking.registry import ModelVersion, RegistryError
from emuedit.tracking.stats import PARENT_RUN_ENV
from emuedit.tracking.store_address import TRACKING_URI_ENV

_PREFIX = "dvc."
_LOCAL_CONFIG = ".dvc/config.local"


@dataclass(frozen=True)
class RebuiltOutput:
    """Hashes of an output of the version and of its reproduction."""

    path: str
    md5: str
    rebuilt_md5: str
    """md5 from `dvc.lock`; empty if there is none."""

    @property
    def is_identical(self) -> bool:
        """Whether both have the same bytes."""
        return self.md5 == self.rebuilt_md5


def rebuild(version: ModelVersion, repository: Path, folder: Path) -> list[RebuiltOutput]:
    """Check out the commit of a version at `folder`, run every stage again, and compare the hashes of its outputs.

    DVC's run cache is not used; data that no stage produces are pulled. The stages see no tracking server, so that nothing is
    logged twice and today's champion cannot stop the validation. Raises RegistryError for a version with uncommitted changes,
    and if a stage fails.
    """
    commit = version.tags.get("git.commit")
    if not commit:
        raise RegistryError(f"want a version that was registered from a git repository, got {version.number} without a commit")
    if version.tags.get("git.dirty") == "true":
        raise RegistryError(
            f"want a version made from a commit, got {version.number}, made from {commit[:8]} with uncommitted "
            "changes; commit before you retrain"
        )
    tags = {key: value for key, value in version.tags.items() if key.startswith(_PREFIX) and key != "dvc.lock"}
    hashes = {key.removeprefix(_PREFIX): md5 for key, md5 in sorted(tags.items())}
    _run(["git", "worktree", "add", "--detach", str(folder), commit], repository)
    if hashes:  # commits of earlier versions track metrics inside an out, which DVC then does not save
        _run(["git", "rm", "--cached", "-r", "--quiet", "--ignore-unmatch", "--", *hashes], folder)
    remotes = repository / _LOCAL_CONFIG  # git does not track it
    if remotes.exists():
        shutil.copy2(remotes, folder / _LOCAL_CONFIG)
    _run([sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "--pull"], folder)
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    rebuilt = {out["path"]: out[out.get("hash", "md5")] for stage in stages.values() for out in stage.get("outs", ())}
    pipeline = yaml.safe_load((folder / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]
    varies = {
        out["path"]
        for name, stage in stages.items()
        for out in stage.get("outs", ())
        if not pipeline[name.partition("@")[0]].get("meta", {}).get("reproducible", True)
    }
    return [RebuiltOutput(path, md5, rebuilt.get(path, "")) for path, md5 in hashes.items() if path not in varies]


@contextlib.contextmanager
def removed_worktree(repository: Path, folder: Path, keep: bool) -> Iterator[None]:
    """Remove the worktree after the block, unless `keep` is set or the block failed: then its path is printed."""
    try:
        yield
    except BaseException:
        if folder.exists():
            print(f"kept for inspection: {folder}; `git worktree remove --force {folder}` deletes it", file=sys.stderr)
        raise
    if not keep:
        _run(["git", "worktree", "remove", "--force", str(folder)], repository)


def _run(command: list[str], folder: Path) -> None:
    """Run a command with its output on the screen. Raises RegistryError if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {key: value for key, value in os.environ.items() if key not in (TRACKING_URI_ENV, PARENT_RUN_ENV)}
    status = subprocess.run(command, cwd=folder, env={**environment, "PATH": path}, check=False).returncode  # noqa: S603
    if status:
        raise RegistryError(f"{' '.join(command[:4])} failed with exit status {status} in {folder}; its output is above")
