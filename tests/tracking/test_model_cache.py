"""The cache of downloaded models, of which tests/doors/test_places.py has more tests."""

import os
import shutil
from pathlib import Path

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
