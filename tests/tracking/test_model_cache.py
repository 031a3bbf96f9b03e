"""The cache of downloaded models, of which tests/doors/test_places.py has more tests."""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from emuedit.tracking import model_cache


def download_to(folder: Path) -> Path:
    (folder / "m").mkdir()
    return folder / "m"


def test_models_that_other_processes_delete_at_the_same_time_are_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = [model_cache.get(f"m-{number}", download_to) for number in range(model_cache.MAX_MODELS + 1)]
    for number, path in enumerate(models):
        os.utime(path, (number, number))

    def delete_second(path: Path) -> bool:
        """It is the first of the two to delete."""
        if models[1].exists():
            shutil.rmtree(models[1])
        return False

    monkeypatch.setattr(model_cache, "_is_kept", delete_second)
    model_cache.get("new", download_to)
    left = {path.name for path in (tmp_path / "emuedit/registered-models").iterdir()}
    assert left == {"new", *(path.name for path in models[2:])}


def test_what_a_killed_download_left_is_deleted_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = tmp_path / "emuedit/registered-models"
    killed = models / ".part-killed"

    def check_and_download(folder: Path) -> Path:
        assert not killed.exists()
        return download_to(folder)

    def download_slowly(folder: Path) -> Path:
        shutil.copytree(folder.parent, killed)  # nobody has locked the copy
        model_cache.get("other", check_and_download)
        return download_to(folder)

    model_cache.get("m", download_slowly)
    assert {path.name for path in models.iterdir()} == {"m", "other"}


def test_where_files_cannot_be_locked_an_incomplete_model_is_deleted_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    killed = tmp_path / "emuedit/registered-models/.part-killed"

    def download_slowly(folder: Path) -> Path:
        shutil.copytree(folder.parent, killed)
        return model_cache.get("other", download_to)

    model_cache.get("m", download_slowly)
    assert killed.exists()
    os.utime(killed, (0, 0))
    model_cache.get("new", download_to)
    assert not killed.exists()


@pytest.mark.parametrize("is_on_nfs", [False, True])
def test_a_running_download_is_locked_before_another_process_can_take_it_for_a_killed_one(
    is_on_nfs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models, flock = tmp_path / "emuedit/registered-models", fcntl.flock
    running: list[Path] = []

    def lock(stream: Any, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not running:
            running.extend(models.iterdir())
            model_cache._prune_parts(models)
        if is_on_nfs and operation == fcntl.LOCK_SH and not stream.readable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(stream, operation)

    def check_and_download(folder: Path) -> Path:
        assert running == [folder.parent]
        assert model_cache._is_kept(folder.parent)
        return download_to(folder)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert model_cache.get("m", check_and_download) == models / "m"
    assert [path.name for path in models.iterdir()] == ["m"]
