"""A list of a folder's files with hashes, written with a package and checked when it is opened."""

import json
from pathlib import Path

from emuedit.data.dependencies import hash_file

MANIFEST_FILE = "manifest.json"
_SHOWN = 5


class ManifestError(ValueError):
    """Raised for a folder that does not match its manifest."""


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` with the blake2b (16 hex digits) of every file below the folder."""
    (folder / MANIFEST_FILE).write_text(json.dumps(_hashes(folder), indent=1) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Compare a folder with its manifest. Does nothing if there is none.

    Raises ManifestError that lists missing, changed and unlisted files. Unlisted files are errors because loading the folder
    would load them too.
    """
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return
    listed: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    present = _hashes(folder)
    problems = [f"{name} is missing" for name in listed if name not in present]
    problems += [f"{name} has changed" for name, value in present.items() if listed.get(name, value) != value]
    problems += [f"{name} is not listed" for name in present if name not in listed]
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ManifestError(
            f"want in {folder} the files of its {MANIFEST_FILE}, but {', '.join(problems[:_SHOWN])}{more}; "
            "download or register the version again"
        )


def _hashes(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files if file != folder / MANIFEST_FILE}
