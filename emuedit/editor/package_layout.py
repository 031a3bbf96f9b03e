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
