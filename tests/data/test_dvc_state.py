"""DVC's state is in a folder of this user, unless a setting names another."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from emuedit.data import dvc_state
from emuedit.operations.health import workspace_checks
from emuedit.operations.storage import dvc_remote


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an empty `.dvc`; beside it are the home folder `home`, and `var` in place of /var/tmp."""
    for name in ("DVC_SITE_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in (name for name in os.environ if name.lower().endswith("_proxy")):
        monkeypatch.delenv(name)
    (tmp_path / "var").mkdir()
    monkeypatch.setattr(dvc_state, "PLACE", tmp_path / "var")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (root := tmp_path / "project").mkdir()
    (root / ".dvc").mkdir()
    monkeypatch.chdir(root)
    return root


def test_the_folder_is_private_and_used_again(project: Path) -> None:
    folder = project.parent / f"var/emuedit-dvc-{os.getuid()}"
    assert dvc_state.variables() == dvc_state.variables() == {"DVC_SITE_CACHE_DIR": str(folder)}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert dvc_state.find_open_part(folder) is None


@pytest.mark.parametrize("file", ["project/.dvc/config.local", "project/.dvc/config", "home/.config/dvc/config"])
def test_a_folder_of_the_settings_is_kept(file: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.parent / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[core]\n    site_cache_dir = /fast/dvc%\n")
    assert dvc_state.configured() == Path("/fast/dvc%")
    assert dvc_state.variables() == {}
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/faster/dvc")
    assert (dvc_state.configured(), dvc_state.variables()) == (Path("/faster/dvc"), {})


@pytest.mark.parametrize("file", ["DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"])
def test_settings_are_also_read_from_folders_that_dvcs_variables_name(
    file: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.parent / "config").write_text("[core]\n    site_cache_dir = /fast/dvc\n")
    monkeypatch.setenv(file, str(project.parent))
    assert dvc_state.configured() == Path("/fast/dvc")


def test_a_link_that_others_made_is_not_followed(project: Path) -> None:
    """It must not stop DVC either: a link to itself cannot be resolved."""
    place = project.parent / "var"
    (place / f"emuedit-dvc-{os.getuid()}").symlink_to(f"emuedit-dvc-{os.getuid()}")
    folder = Path(dvc_state.variables()["DVC_SITE_CACHE_DIR"])
    assert folder.parent != place
    assert folder.stat().st_mode & 0o777 == 0o700


def without_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_place_that_cannot_be_used_is_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_state.make_private_temporary.__globals__["tempfile"], "tempdir", str(project.parent))
    (project.parent / f"var/emuedit-dvc-{os.getuid()}").symlink_to(project)
    folder = project.parent / "home/.cache/emuedit/dvc"
    assert dvc_state.private_folder() == folder
    folder.chmod(0o777)
    place = project.parent / f"emuedit-dvc-{os.getuid()}"
    assert dvc_state.private_folder() == place
    monkeypatch.setattr(dvc_state, "PLACE", Path("/proc/nowhere"))
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert dvc_state.private_folder() == place
    assert place.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(Path, "home", without_home)
    assert dvc_state.variables() == {"DVC_SITE_CACHE_DIR": str(place)}


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other accounts can enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="emuedit-dvc-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_others_can_write_is_named(shared: Path) -> None:
    (folder := shared / "dvc").mkdir()
    (repo := folder / "repo").mkdir()
    repo.chmod(0o777)  # as DVC makes it
    assert dvc_state.find_open_part(folder) == repo
    repo.chmod(0o1777)
    shared.chmod(0o777)
    assert dvc_state.find_open_part(folder) == shared
    folder.chmod(0o700)
    shared.chmod(0o1777)
    repo.chmod(0o777)
    assert dvc_state.find_open_part(folder) is None, "nobody else can enter it"


def test_doctor_warns_of_a_folder_that_others_can_write(project: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_state, "DEFAULT", shared)
    assert [finding.status for finding in workspace_checks.check_dvc_state()] == ["pass"]
    shared.chmod(0o777)
    (finding,) = workspace_checks.check_dvc_state()
    assert (finding.status, str(shared) in finding.detail) == ("warn", True)
    folder = project.parent / f"var/emuedit-dvc-{os.getuid()}"
    assert finding.fix == f"uv run dvc config --local core.site_cache_dir {folder}"
    (project / ".dvc/config.local").write_text(f"[core]\n    site_cache_dir = {folder}\n")
    assert [finding.status for finding in workspace_checks.check_dvc_state()] == ["pass"]
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(shared))
    (finding,) = workspace_checks.check_dvc_state()
    assert finding.fix.startswith("unset DVC_SITE_CACHE_DIR; uv run dvc config")


@pytest.mark.slow
def test_dvc_uses_the_folder(project: Path) -> None:
    (project / ".dvc").rmdir()
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True, env=os.environ | dvc_state.variables())
    folder = dvc_state.private_folder()
    (project / "a.txt").write_text("a")
    dvc_remote.run_dvc(["add", "-q", "a.txt"], project)
    assert list((folder / "repo").iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    dvc_remote.run_dvc(["config", "--local", "core.site_cache_dir", str(project / "of the settings")], project)
    dvc_remote.run_dvc(["status", "-q"], project)
    assert (project / "of the settings/repo").is_dir()
