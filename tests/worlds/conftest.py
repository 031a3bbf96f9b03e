"""A clone of the project for `emuedit init`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repository import ROOT


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params and pipeline, committed, and captions; it is the working folder."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "captions.txt").write_text("a red car in a street\na dog at a lake\na house in the snow\n")
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "params.yaml", "dvc.yaml"], ["commit", "-qm", "files"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for other processes; this one has read it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder
