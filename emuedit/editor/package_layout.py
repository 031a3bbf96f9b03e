"""Names of the parts of a packaged editor (`package_folder`), and of the folder in which a workspace has its own."""

from pathlib import Path

EDITOR, ROUTER, PACKS, SETTINGS = "editor", "router", "inversion", "settings.json"
USER_PACKS = "packs"
"""Task packs that people add, beside those that a package came with."""
MODELS = Path("models")
