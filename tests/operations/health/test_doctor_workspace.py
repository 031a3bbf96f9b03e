"""What `emuedit doctor` says about the working folder: data that only it has, stages without DVC, old work in scratch."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from emuedit.operations.health import workspace_checks

SLEEP = "import time; time.sleep(60)"


def test_a_folder_without_dvc_has_no_data_to_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = workspace_checks.check_data_in_remote()
    assert finding.status == "pass"


@pytest.mark.slow
def test_data_that_was_not_pushed_or_was_deleted_in_the_remote_is_found(
    project: Path, dvc_run: Callable[..., None], tmp_path: Path
) -> None:
    dvc_run("remote", "add", "-q", "-d", "folder", str(tmp_path / "remote"))
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("warn", "1 missing, such as data/")
    assert "dvc push" in finding.fix
    dvc_run("push", "-q")
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("pass", "complete")
    (file,) = [path for path in (tmp_path / "remote/files").rglob("*") if path.is_file() and path.suffix != ".dir"]
    file.unlink()
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("warn", "1 missing, such as data/a.txt")
    assert "emuedit remote verify --repair" in finding.fix
    shutil.rmtree(tmp_path / "remote/files")
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("warn", "1 missing, such as data/")


def test_the_lock_of_the_repository_is_free_or_in_use_or_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc/tmp").mkdir(parents=True)
    with Path(".dvc/tmp/lock").open("w") as stream:
        assert next(workspace_checks.check_dvc_locks()).detail == "none held, repository free"
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert next(workspace_checks.check_dvc_locks()).detail == "none held, repository in use by another DVC"

    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    (finding,) = workspace_checks.check_dvc_locks()
    assert (finding.status, finding.detail) == ("fail", ".dvc/tmp/lock cannot be locked (flock): No locks available")
    assert "such as a local disk" in finding.fix


def test_a_remote_that_does_not_answer_in_time_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    monkeypatch.setattr(workspace_checks, "_DVC_S", 0.01)
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("warn", "unknown: DVC did not finish within 0.01 s")


def test_the_reason_of_dvc_is_shown_without_its_warnings_and_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    footer = "Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!"
    messages = f"WARNING: a file is missing.\nERROR: unexpected error - The AWS Access Key Id does not exist.\n\n{footer}\n"
    process = subprocess.CompletedProcess([], 255, "", messages)
    patched = SimpleNamespace(run=lambda *_, **__: process, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(workspace_checks, "subprocess", patched)
    (finding,) = workspace_checks.check_data_in_remote()
    assert (finding.status, finding.detail) == ("warn", "unknown: unexpected error - The AWS Access Key Id does not exist.")


def test_a_stage_whose_dvc_was_killed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "DVC_STAGE": "train"}
    start = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
    command = [sys.executable, "-c", start, "dvc"]  # as `python -m dvc repro`
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as dvc:
        assert dvc.stdout is not None
        stage = psutil.Process(int(dvc.stdout.readline()))
        try:
            here = [process.pid for process in workspace_checks.orphaned_stages(tmp_path)]
            assert stage.pid not in here, "want no finding while its DVC runs"
            dvc.kill()
            dvc.wait()
            (finding,) = workspace_checks.check_orphaned_stages()
            assert (finding.status, finding.fix) == ("fail", f"kill {stage.pid}")
            (tmp_path / "elsewhere").mkdir()
            assert workspace_checks.orphaned_stages(tmp_path / "elsewhere") == []
        finally:
            stage.kill()


def test_old_work_in_scratch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("old", "new"):
        folder = Path("scratch/pairs", name)
        folder.mkdir(parents=True)
        with (folder / "shard").open("wb") as file:
            file.truncate(3 * 10**9)
    two_months_ago = time.time() - 60 * 86400
    for path in (Path("scratch/pairs/old/shard"), Path("scratch/pairs/old")):
        os.utime(path, (two_months_ago, two_months_ago))
    stale = [finding for finding in workspace_checks.check_caches() if finding.name == "stale work"]
    assert [(finding.status, finding.fix) for finding in stale] == [("warn", "rm -r scratch/pairs/old")]
    assert "3.00 GB in 1 folders" in stale[0].detail
