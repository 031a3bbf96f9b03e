"""A version that continued a registered model is rebuilt from that model, or not at all."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.promotion import rebuild
from emuedit.tracking.registry import ModelVersion, RegistryError

UPPER = """\
stages:
  upper:
    cmd: tr a-z A-Z < photos/1.txt > out.txt
    deps: [photos]
    outs: [out.txt]
"""
DVC = (sys.executable, "-m", "dvc")
PARENT = "models:/emuedit-editor/3"
PIPELINE = """\
stages:
  train:
    cmd: python -c "import os; open('editor.txt', 'w').write(os.environ['EMUEDIT_REBUILT_PARENT'])"
    outs: [editor.txt]
"""


@pytest.fixture
def commit(repository: Path, project: Path, shell: Callable[..., str]) -> str:
    """A commit of a pipeline whose one stage writes the model that it continues."""
    (project / "dvc.yaml").write_text(PIPELINE)
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "a pipeline", cwd=project)
    return shell("git", "rev-parse", "HEAD", cwd=project).strip()


def version_of(commit: str, parent: str = PARENT, md5: str = "") -> ModelVersion:
    return ModelVersion(7, "run", {"git.commit": commit, "git.dirty": "false", "parent": parent, "dvc.editor.txt": md5})


@pytest.mark.slow
def test_the_stages_start_from_the_registered_parent(
    commit: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "download_version", lambda uri: tmp_path / "cache" / uri.rpartition("/")[2])
    text = f"{PARENT}={tmp_path}/cache/3"
    version = version_of(commit, md5=hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())
    (output,) = rebuild.rebuild(version, project, tmp_path / "worktree")
    assert (tmp_path / "worktree/editor.txt").read_text() == text
    assert output.is_identical


def cached_files(project: Path) -> list[Path]:
    return [file for file in (project / ".dvc/cache").rglob("*") if file.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["cache", "remote"])
def test_inputs_that_dvc_tracks_are_there(place: str, project: Path, tmp_path: Path, shell: Callable[..., str]) -> None:
    """Such as photographs and a checkpoint of SAM. `dvc repro --force` says that such data are missing, whatever it pulls."""
    (project / "dvc.yaml").write_text(UPPER)
    (project / "photos").mkdir()
    (project / "photos/1.txt").write_text("a photograph")
    shell(*DVC, "add", "-q", "photos", cwd=project)
    if place == "remote":
        shell(*DVC, "remote", "add", "-q", "--local", "--default", "store", str(tmp_path / "store"), cwd=project)
        shell(*DVC, "push", "-q", cwd=project)
        shutil.rmtree(project / ".dvc/cache")
    (project / "old.txt").write_text("not used by any stage")
    shell(*DVC, "add", "-q", "old.txt", cwd=project)
    next(file for file in cached_files(project) if file.read_text() == "not used by any stage").unlink()
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "own data", cwd=project)
    commit = shell("git", "rev-parse", "HEAD", cwd=project).strip()
    tags = {"git.commit": commit, "git.dirty": "false", "dvc.out.txt": hashlib.md5(b"A PHOTOGRAPH").hexdigest()}
    (output,) = rebuild.rebuild(ModelVersion(7, "run", tags), project, tmp_path / "worktree")
    assert output.is_identical
    assert "A PHOTOGRAPH" not in [file.read_text() for file in cached_files(project)], "a rebuild must not fill the cache"


def test_a_parent_that_cannot_be_had_stops_the_rebuild_before_any_stage(
    commit: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(uri: str) -> Path:
        raise RegistryError(f"no files of {uri}")

    monkeypatch.setattr(rebuild, "download_version", download)
    with pytest.raises(RegistryError, match=f"no files of {PARENT}"):
        rebuild.rebuild(version_of(commit), project, tmp_path / "worktree")
    with pytest.raises(RegistryError, match=r"got 7, which continued models:/emuedit-editor@champion: .*another version today"):
        rebuild.rebuild(version_of(commit, "models:/emuedit-editor@champion"), project, tmp_path / "worktree")
    assert not (tmp_path / "worktree").exists()


def test_code_that_would_start_from_another_editor_is_not_run(
    project: Path, tmp_path: Path, shell: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("emuedit/__init__.py", "emuedit/editor/__init__.py", "emuedit/editor/package_folder.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    shell("git", "add", ".", cwd=project)
    shell("git", "commit", "-qm", "older code", cwd=project)
    monkeypatch.setattr(rebuild, "download_version", lambda uri: tmp_path)
    commit = shell("git", "rev-parse", "HEAD", cwd=project).strip()
    with pytest.raises(
        RegistryError, match=rf"want a commit whose code can .*which continued {PARENT} \(ImportError: cannot import"
    ):
        rebuild.rebuild(version_of(commit), project, tmp_path / "worktree")
    assert not (tmp_path / "worktree/dvc.lock").exists()
