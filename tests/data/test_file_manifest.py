"""A package is opened only if its files are those that were registered."""

import json
from pathlib import Path

import pytest

from emuedit.data.file_hashes import hash_file
from emuedit.data.file_manifest import ManifestError, check_manifest, hash_files, write_manifest


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
    with pytest.raises(ManifestError, match=r"want manifest.json with the hashes of all files in .*, got none; download"):
        check_manifest(package, is_required=True)


def test_whoever_rewrites_the_manifest_is_noticed_by_its_hash(package: Path) -> None:
    registered = write_manifest(package)
    check_manifest(package, expected_hash=registered)
    (package / "settings.json").write_text("[]")
    assert write_manifest(package) != registered
    check_manifest(package)
    with pytest.raises(ManifestError, match=r"manifest.json as it was registered, got one with another hash"):
        check_manifest(package, expected_hash=registered)
    (package / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="got none"):
        check_manifest(package, expected_hash=registered)


def test_a_manifest_with_shorter_hashes_is_not_accepted(package: Path) -> None:
    """Or whoever writes it could choose a hash of 64 bits, for which two files with the same hash can be computed."""
    names = ("editor/weights.safetensors", "settings.json")
    (package / "manifest.json").write_text(json.dumps({name: hash_file(package / name) for name in names}))
    with pytest.raises(ManifestError, match=r"weights\.safetensors has changed"):
        check_manifest(package)


def test_compiled_code_is_a_file_like_any_other(package: Path) -> None:
    """Python would run it in place of its source."""
    (package / "__pycache__").mkdir()
    (package / "__pycache__/model.cpython-311.pyc").write_bytes(b"")
    assert len(hash_files(package)) == 4
    with pytest.raises(ManifestError, match="pyc is not listed"):
        check_manifest(package)
    check_manifest(package, ignored=["__pycache__/model.cpython-311.pyc"])


def test_a_damaged_manifest_is_an_error(package: Path) -> None:
    (package / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match=r"want a table of hashes in .*manifest.json, got a damaged file"):
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
