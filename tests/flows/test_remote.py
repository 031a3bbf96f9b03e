import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_clones_share_the_remote_without_configuration(
    project: Path, dvc_run: Callable[..., str], shell: Callable[..., str], tmp_path: Path
) -> None:
    dvc_run("repro", "-q")
    shell("git", "add", "-A", cwd=project)
    shell("git", "commit", "-qm", "results", cwd=project)
    dvc_run("push", "-q")
    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    shell("git", "clone", "-q", str(project), "second", cwd=elsewhere)
    second = elsewhere / "second"
    assert not (second / "models/editor").exists()
    shell(sys.executable, "-m", "dvc", "pull", "-q", cwd=second)
    assert (second / "models/editor/weights.safetensors").read_text() == "0.5"
    assert dvc_run("status", "--json", root=second).strip() == "{}"
    assert shell("git", "status", "--porcelain", cwd=second) == ""
