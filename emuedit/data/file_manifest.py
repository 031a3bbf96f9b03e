"""A list of a folder's files with hashes, written with a package and checked when it is opened."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from emuedit.data.file_hashes import hash_all, hash_file
from emuedit.data.name_list import first_names

MANIFEST_FILE = "manifest.json"
SETTINGS_FILE = "settings.json"
"""Settings of the edits of a package."""
_DIGEST_BYTES = 32


class ManifestError(ValueError):
    """Raised for a folder that does not match its manifest."""


def hash_files(folder: Path) -> dict[str, str]:
    """Path of every file below the folder -> blake2b of its bytes, as hex digits."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    hashes = hash_all(files, _DIGEST_BYTES)
    return {file.relative_to(folder).as_posix(): content for file, content in zip(files, hashes, strict=True)}


def write_manifest(folder: Path, hashes: Mapping[str, str] | None = None) -> str:
    """Write `manifest.json` with `hashes`, by default those of the folder's files. Returns the hash of the manifest."""
    files = hash_files(folder) if hashes is None else hashes
    listed = {name: value for name, value in files.items() if name != MANIFEST_FILE}
    (folder / MANIFEST_FILE).write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return hash_file(folder / MANIFEST_FILE, _DIGEST_BYTES)


def check_manifest(folder: Path, is_required: bool = False, expected_hash: str = "", ignored: Collection[str] = ()) -> None:
    """Compare a folder with its manifest. Does nothing if there is none and none `is_required`.

    expected_hash: hash of the manifest, from a trusted place; a manifest is then required. ignored: files that are not checked.
    Raises ManifestError that lists missing, changed and unlisted files. Unlisted files are errors because loading the folder
    would load them too.
    """
    file = folder / MANIFEST_FILE
    advice = "download or register the version again"
    if not file.is_file():
        if is_required or expected_hash:
            raise ManifestError(f"want {MANIFEST_FILE} with the hashes of all files in {folder}, got none; {advice}")
        return
    if expected_hash and hash_file(file, _DIGEST_BYTES) != expected_hash:
        raise ManifestError(f"want {file} as it was registered, got one with another hash; {advice}")
    listed = _read(file, advice)
    present = hash_files(folder)
    del present[MANIFEST_FILE]
    problems = [f"{name} is missing" for name in listed if name not in present]
    problems += [f"{name} has changed" for name, value in present.items() if listed.get(name, value) != value]
    problems += [f"{name} is not listed" for name in present if name not in listed and name not in ignored]
    if problems:
        raise ManifestError(f"want in {folder} the files of its {MANIFEST_FILE}, but {first_names(problems)}; {advice}")


def _read(file: Path, advice: str) -> dict[str, str]:
    try:
        listed: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ManifestError(f"want a table of hashes in {file}, got a damaged file ({error}); {advice}") from error
    return listed
