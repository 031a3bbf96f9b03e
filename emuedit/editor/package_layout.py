"""Names of the parts of a packaged editor (`package_folder`), and of the folder in which a workspace has its own."""

from pathlib import Path

EDITOR, ROUTER, PACKS, SETTINGS = "editor", "router", "inversion", "settings.json"
MODELS = Path("models")
USER_PACKS = "packs"
"""Task packs that people add, beside those that a package came with."""
PACK_FOLDER = MODELS / USER_PACKS
"""Where they are added: they serve the champion and the editor of this working folder."""


def find_packs(folder: Path) -> list[Path]:
    """The task packs in a folder, by name, without what is being written; none where there is no such folder."""
    return sorted(folder.glob("[!.]*.safetensors"))
