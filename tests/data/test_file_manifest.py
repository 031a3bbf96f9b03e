"""A package is opened only if its files are those that were registered."""

from pathlib import Path

import pytest

from emuedit.data.file_manifest import ManifestError, check_manifest, write_manifest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "editor").mkdir()
    (tmp_path / "editor/weights.safetensors").write_bytes(b"weights")
    (tmp_path / "settings.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_an_untouched_folder_passes_and_so_does_one_without_a_manifest(package: Path) -> None:
    check_manifest(package)
    (package / "manifest.json").unlink()
    (package / "settings.json").write_text("[]")
    check_manifest(package)


def test_changed_missing_and_added_files_are_named(package: Path) -> None:
    (package / "editor/weights.safetensors").write_bytes(b"other")
    (package / "settings.json").unlink()
    (package / "editor/code.py").write_text("import os")
    with pytest.raises(ManifestError) as caught:
        check_manifest(package)
    message = str(caught.value)
    assert "settings.json is missing" in message
    assert "editor/weights.safetensors has changed" in message
    assert "editor/code.py is not listed" in message
    assert message.endswith("download or register the version again")


def test_of_many_problems_the_first_are_named(package: Path) -> None:
    for number in range(9):
        (package / f"{number}.txt").touch()
    with pytest.raises(ManifestError, match="and 4 more"):
        check_manifest(package)
