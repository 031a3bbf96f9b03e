"""Names of the parts of a packaged editor (`package_folder`), and of the folder in which a workspace has its own."""

from pathlib import Path

EDITOR, ROUTER, PACKS, SETTINGS = "editor", "router", "inversion", "settings.json"
USER_PACKS = "packs"
"""Task packs that people add, beside those that a package came with."""
MODELS = Path("models")


def find_packs(folder: Path) -> list[Path]:
    """The task packs in a folder, by name; none where there is no such folder."""
    return sorted(folder.glob("*.safetensors"))
