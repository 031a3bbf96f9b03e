"""Names of the parts of a packaged editor (`package_folder`), and of the folder in which a workspace has its own."""

from pathlib import Path

EDITOR, ROUTER, PACKS, SETTINGS = "editor", "router", "inversion", "settings.json"
MODELS = Path("models")
