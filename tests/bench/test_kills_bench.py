"""The benchmark of kills reports a stage that never finishes, instead of failing itself."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]
HANG = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_an_unpublished_folder_has_no_published_files(load_script: Load, tmp_path: Path) -> None:
    kills = load_script("kills")
    (tmp_path / "part.parquet").touch()
    assert kills.published_files(tmp_path) == {}
    assert kills.published_files(tmp_path / "missing") == {}
    (tmp_path / "summary.json").write_text('{"shards": {}}')
    assert set(kills.published_files(tmp_path)) == {"part.parquet", "summary.json"}


@pytest.mark.slow
def test_a_run_that_hangs_is_killed_and_has_failed(load_script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killing = load_script("harness.killing")
    started: list[subprocess.Popen[bytes]] = []

    def start(root: Path, stage: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", HANG], start_new_session=True))
        return started[-1]

    monkeypatch.setattr(killing, "start", start)
    monkeypatch.setattr(killing, "TIMEOUT_S", 1)
    assert killing.finish(tmp_path, "train") is False
    assert started[0].returncode == -9
    assert not killing.session_processes(started[0].pid)
