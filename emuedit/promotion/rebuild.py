"""Reproduce a registered version from its commit, in a clean worktree, and check whether it is identical.

Outs of a stage with `meta: {reproducible: false}` in `dvc.yaml` are not compared: the report of the validation depends on the
champion of its day.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from emuedit import dvc_lock, git
from emuedit.data import dvc_state
from emuedit.data.dependencies import PIPELINE_FILE, dependency_names
from emuedit.editor.package_folder import PARENT_ENV
from emuedit.tracking.registry import RUNS_SCHEME, SCHEME, ModelVersion, RegistryError, download_version
from emuedit.tracking.stats import PARENT_RUN_ENV
from emuedit.tracking.store_address import TRACKING_URI_ENV

_PREFIX = "dvc."
_LOCAL_CONFIG = ".dvc/config.local"
_DVC = (sys.executable, "-m", "dvc")


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

    DVC's run cache is not used. Inputs that DVC tracks (`dvc add`) come from the repository's cache, which the worktree shares,
    and those that are not there from its remote; outputs are not added to it. The stages see no tracking server, so that nothing
    is logged twice and today's champion cannot stop the validation; a registered model that the version continued is downloaded
    before they run.
    Raises RegistryError for a version with uncommitted changes, for a parent that is not available or whose name does not
    identify it, and if an input cannot be had or a stage fails; ManifestError for a parent with changed files; and ServiceError
    if MLflow or its artifact store cannot be used.
    """
    commit = version.tags.get("git.commit")
    if not commit:
        raise RegistryError(f"want a version that was registered from a git repository, got {version.number} without a commit")
    if version.tags.get("git.dirty") == "true":
        raise RegistryError(
            f"want a version made from a commit, got {version.number}, made from {commit[:8]} with uncommitted "
            "changes; commit before you retrain"
        )
    environment = _parent_environment(version)
    tags = {key: value for key, value in version.tags.items() if key.startswith(_PREFIX) and key != "dvc.lock"}
    hashes = {key.removeprefix(_PREFIX): md5 for key, md5 in sorted(tags.items())}
    _run(["git", "worktree", "add", "--detach", str(folder), commit], repository)
    remotes = repository / _LOCAL_CONFIG  # git does not track it
    if remotes.exists():
        shutil.copy2(remotes, folder / _LOCAL_CONFIG)
    if environment:
        _check_code(version, folder)
    _get_inputs(repository, folder)
    _run([*_DVC, "repro", "--force", "--no-run-cache", "--no-commit"], folder, environment)
    stages = dvc_lock.read_stages(folder)
    rebuilt = dvc_lock.output_hashes(stages)
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


def _get_inputs(repository: Path, folder: Path) -> None:
    """Check out the deps of stages that `*.dvc` files track: `dvc repro --force` checks them, and pulls none."""
    command = [*_DVC, "cache", "dir"]
    cache = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    _run([*_DVC, "cache", "dir", "--local", str(repository / cache)], folder)
    deps = {folder / dep for deps_of_stage in dependency_names(folder).values() for dep in deps_of_stage}
    tracked = [name for name in git.run(folder, "ls-files", "-z", "*.dvc").split("\0") if name]
    if needed := [name for name in tracked if any(_overlap(out, dep) for out in _outs(folder / name) for dep in deps)]:
        _run([*_DVC, "pull", *needed], folder)


def _outs(file: Path) -> list[Path]:
    """The files and folders of a `*.dvc` file."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [file.parent / content.get("wdir", ".") / out["path"] for out in content.get("outs", ())]


def _overlap(out: Path, dep: Path) -> bool:
    """Whether one is the other, or lies in it."""
    out, dep = out.resolve(), dep.resolve()
    return out.is_relative_to(dep) or dep.is_relative_to(out)


def _parent_environment(version: ModelVersion) -> dict[str, str]:
    """The variable that names the registered model from which the training started, which is downloaded; empty without one."""
    parent = version.tags.get("parent", "")
    if not parent.startswith((SCHEME, RUNS_SCHEME)):
        return {}
    if "@" in parent:
        raise RegistryError(
            f"want a version that continued a numbered version, got {version.number}, which continued {parent}: that may be "
            "another version today. Newer versions record the number of their parent"
        )
    return {PARENT_ENV: f"{parent}={download_version(parent)}"}


def _check_code(version: ModelVersion, folder: Path) -> None:
    """Raise RegistryError if the code at `folder` ignores PARENT_ENV, and would start from another editor."""
    command = [sys.executable, "-c", "from emuedit.editor.package_folder import find_rebuilt_parent"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RegistryError(
            f"want a commit whose code can continue a downloaded model, got that of version {version.number}, which continued "
            f"{version.tags['parent']} ({reason}). Versions of newer code can be rebuilt"
        )


def _run(command: list[str], folder: Path, added: Mapping[str, str] | None = None) -> None:
    """Run a command with its output on the screen, and `added` variables. Raises RegistryError if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    removed = (TRACKING_URI_ENV, PARENT_RUN_ENV, PARENT_ENV)
    environment = {key: value for key, value in os.environ.items() if key not in removed}
    environment |= {"PATH": path, **dvc_state.variables(folder), **(added or {})}
    status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode  # noqa: S603
    if status:
        raise RegistryError(f"{' '.join(command[:4])} failed with exit status {status} in {folder}; its output is above")
