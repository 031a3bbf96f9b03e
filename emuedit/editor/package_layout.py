"""Names of the parts of a packaged editor (`package_folder`) and of the workspace's model folder."""

from pathlib import Path

EDITOR, ROUTER, BUILT_IN_PACKS = "editor", "router", "inversion"
MODELS = Path("models")
USER_PACKS = "packs"
"""Task packs added by users, in addition to those of the package."""
PACK_FOLDER = MODELS / USER_PACKS
"""Folder of added packs, used by the champion and by this workspace's editor."""


def find_packs(folder: Path) -> list[Path]:
    """The task packs in a folder, sorted by name, without temporary files; empty if there is no such folder."""
    return sorted(folder.glob("[!.]*.safetensors"))


def advise_on_taken_name(name: str) -> str:
    """What to do about a new task whose name the editor already has: only packs in PACK_FOLDER can be removed."""
    if (PACK_FOLDER / f"{name}.safetensors").is_file():
        return f"to replace it, run `emuedit tasks remove {name}` first, or choose another name"
    return f"{name} comes with the editor, so choose another name"
