"""The folder that replaces a home of Prefect that cannot be written."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import prefect_access


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its usual path; it does not exist yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("PREFECT_HOME", "")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path / f"emuedit-prefect-{os.getuid()}"


def choose() -> Path:
    os.environ["PREFECT_HOME"] = ""
    prefect_access.check()
    return Path(os.environ["PREFECT_HOME"])


def test_the_folder_is_private_and_used_again(folder: Path) -> None:
    assert choose() == choose() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def link(folder: Path) -> None:
    (other := folder.parent / "other").mkdir(mode=0o700)
    folder.symlink_to(other)


@pytest.mark.parametrize(
    "prepare",
    [
        link,
        lambda folder: folder.symlink_to("absent"),
        lambda folder: folder.touch(mode=0o600),
        lambda folder: (folder.mkdir(), folder.chmod(0o777)),
    ],
    ids=["a link", "a dangling link", "a file", "open to all"],
)
def test_a_path_that_others_may_have_made_is_not_used(prepare: Callable[[Path], object], folder: Path) -> None:
    prepare(folder)
    chosen = choose()
    assert chosen.parent == folder.parent
    assert chosen.name.startswith(f"{folder.name}-")
    assert stat.S_IMODE(chosen.lstat().st_mode) == 0o700


def test_the_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    lstat = Path.lstat

    def of_another(path: Path) -> os.stat_result:
        values = list(lstat(path))
        values[stat.ST_UID] += 1
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", of_another)
    assert choose() != folder
