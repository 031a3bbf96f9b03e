"""A packaged editor on disk: one folder, the same for a working folder's `models/` and for a registered version.

    editor/  router/  inversion/*.safetensors  packs/*.safetensors  settings.json

All but the first may be missing: without a router tasks must be named, without settings.json the defaults of `EditSettings`
apply. `packs/` has what people add by `emuedit learn` and `emuedit tasks add`; a registered
version has none, and the champion gets those of the working folder's `models/`.
A pipeline folder alone, as `EmuEditPipeline.push_to_hub` publishes it, is a package that has nothing but its editor.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from emuedit import config
from emuedit.editor.package_layout import EDITOR, MODELS, SETTINGS
from emuedit.editor.settings import EditSettings

EDITOR_FILE = "model_index.json"  # what an editor folder is recognised by
CHAMPION = "models:/emuedit-editor@champion"


class PackageError(ValueError):
    """Raised for a folder without an editor, and for an edit that cannot be made."""


def resolve_source(source: str | Path | None) -> tuple[Path, str]:
    """Folder of a model and what to call it, see `Editor.load`. Models that are not on this machine are downloaded once."""
    from emuedit.models.model_sources import HUB_ID, download_snapshot

    if source is None:
        return _default_source()
    name = str(source)
    if name.startswith(("models:/", "runs:/")):
        from emuedit.tracking import registry

        return registry.download_version(name), name
    if ":/" in name:
        raise PackageError(f"want a folder, models:/..., runs:/... or a hub id 'owner/name'; got {name!r}")
    if not Path(name).exists() and HUB_ID.fullmatch(name):
        try:
            return download_snapshot(name), name
        except Exception as error:  # the hub raises a dozen classes for: offline, no such repository, no access
            raise PackageError(
                f"want a folder or a hub id, got {name!r}: no such folder here, and the hub gave nothing ({type(error).__name__})"
            ) from error
    return Path(name), name


def find_champion() -> tuple[Path, str] | None:
    """Folder and name (`models:/emuedit-editor/3`) of the champion; None where none is registered.

    Raises ServiceError, in seconds, while MLflow is away, and RegistryError for a champion whose files are gone.
    """
    if not (os.environ.get("MLFLOW_TRACKING_URI") or Path("mlflow.db").exists()):  # opening a store makes one
        return None
    from emuedit.tracking import registry, service_errors

    service_errors.check()
    with service_errors.converted():
        version = registry.version_at("champion")
        return None if version is None else (registry.download_version(version.uri), version.uri)


def _default_source() -> tuple[Path, str]:
    """The champion of the tracking store, or else the working folder's own models, also where it is out of reach."""
    from emuedit.tracking.registry import RegistryError
    from emuedit.tracking.service_errors import ServiceError

    try:
        if (champion := find_champion()) is not None:
            return champion[0], CHAMPION
    except (ServiceError, RegistryError) as error:
        if not (MODELS / EDITOR).is_dir():
            raise PackageError(f"the champion is out of reach, and there is no {MODELS / EDITOR} here: {error}") from error
        print(f"{error}; {MODELS / EDITOR} is used instead of the champion", file=sys.stderr, flush=True)
        return MODELS, str(MODELS / EDITOR)
    if not (MODELS / EDITOR).is_dir():
        raise PackageError(
            f"no champion is registered and there is no {MODELS / EDITOR} here; run `uv run retrain` or name a model"
        )
    return MODELS, str(MODELS / EDITOR)


def find_package(folder: str | Path) -> Path:
    """The package that a folder is, or that an editor folder lies in; an editor folder that lies in none is its own."""
    path = Path(folder)
    if (path / EDITOR / EDITOR_FILE).is_file():
        return path
    if (path / EDITOR_FILE).is_file() and path.resolve().name == EDITOR:
        return path.resolve().parent
    if _is_editor(path):
        return path
    content = sorted(entry.name for entry in path.iterdir())[:8] if path.is_dir() else "nothing"
    raise PackageError(
        f"want a folder with {EDITOR}/{EDITOR_FILE}, got {path} with {content}; run `uv run retrain`, or name a model"
    )


def editor_folder(root: Path) -> Path:
    """The editor's folder in a package."""
    return root / EDITOR if (root / EDITOR).is_dir() else root


def _is_editor(folder: Path) -> bool:
    from emuedit.models.model_sources import EDITOR as KIND

    if not (folder / EDITOR_FILE).is_file():
        return False
    try:
        return json.loads((folder / EDITOR_FILE).read_text(encoding="utf-8")).get(KIND.key) in KIND.accepts
    except ValueError:  # damaged: loading it says how
        return True


def read_settings(root: Path) -> EditSettings:
    """The settings of a package: those of its `settings.json`, or of the `params.yaml` beside a workspace's `models/`.

    Raises PackageError for a package of an earlier version.
    """
    if (root / SETTINGS).is_file():
        return EditSettings().with_changes(json.loads((root / SETTINGS).read_text(encoding="utf-8")))
    if (root / "defaults.json").is_file():
        raise PackageError(
            f"{root} was packaged by an earlier version (it has defaults.json); register it again: `uv run retrain`"
        )
    params_file = root.resolve().parent / config.PARAMS_FILE
    if root.resolve().name == MODELS.name and params_file.is_file():
        return EditSettings().with_changes(config.read_yaml(params_file).get("evaluation", {}).get("settings", {}))
    return EditSettings()
