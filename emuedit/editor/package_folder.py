"""A packaged editor on disk: the same layout in a workspace's `models/` and in a registered version.

    editor/  router/  inversion/*.safetensors  packs/*.safetensors  settings.json

All but the first are optional: without a router, tasks must be given; without settings.json, the defaults of `EditSettings`
apply. `packs/` has the packs added by `emuedit learn` and `emuedit tasks add`; a registered version has none, and the champion
gets the packs of the workspace's `models/`.
A pipeline folder, as published by `EmuEditPipeline.push_to_hub`, is a package with only an editor.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from emuedit import config
from emuedit.data.file_manifest import SETTINGS_FILE
from emuedit.editor.package_layout import EDITOR, MODELS
from emuedit.editor.settings import EditSettings

EDITOR_FILE = "model_index.json"  # identifies an editor folder
CHAMPION_URI = "models:/emuedit-editor@champion"
PARENT_ENV = "EMUEDIT_REBUILT_PARENT"
"""Set by `emuedit rebuild`, whose stages cannot use the registry: `<reference>=<folder>` of the registered model that the version
continued."""

_FILES = (
    "*.json", "*.safetensors", "*.txt", "*.model", "*.md", "*.jsonl", "*.csv", "*.png", "*replay/*.parquet", "*router/*.parquet",
)  # fmt: skip
"""Patterns of the files of a package. Nothing else of a hub repository is downloaded."""


class PackageError(ValueError):
    """Raised for a source that holds no editor."""


def resolve_source(source: str | Path | None) -> tuple[Path, str]:
    """(folder, display name) of a model, see `Editor.load`. Remote models are downloaded once."""
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
            return download_snapshot(name, _FILES), name
        except Exception as error:  # the hub has a dozen error classes: offline, missing repository, no access
            raise PackageError(
                f"want a folder or a hub id, got {name!r}: no such folder, and the hub request failed ({type(error).__name__})"
            ) from error
    return Path(name), name


def find_champion() -> tuple[Path, str] | None:
    """Folder and name (`models:/emuedit-editor/3`) of the champion; None if none is registered.

    Raises ServiceError within seconds if MLflow is unreachable, RegistryError if the champion's files are missing.
    """
    from emuedit.tracking import registry, service_errors, store_address

    if not store_address.has_store():
        return None

    if not os.environ.get(store_address.TRACKING_URI_ENV) and store_address.is_server_stopped(Path()):
        print(store_address.STOPPED, file=sys.stderr, flush=True)
    service_errors.check()
    with service_errors.converted():
        version = registry.version_at("champion")
        return None if version is None else (registry.download_version(version.uri), version.uri)


def find_rebuilt_parent() -> tuple[Path, str] | None:
    """Folder and name of the registered model that the training continues under `emuedit rebuild`; None outside of it."""
    name, _, folder = os.environ.get(PARENT_ENV, "").partition("=")
    return (Path(folder), name) if folder else None


def _default_source() -> tuple[Path, str]:
    """The champion; if there is none or it is unreachable, the workspace's models."""
    from emuedit.tracking.registry import RegistryError
    from emuedit.tracking.service_errors import ServiceError

    try:
        if (champion := find_champion()) is not None:
            return champion[0], CHAMPION_URI
    except (ServiceError, RegistryError) as error:
        if not (MODELS / EDITOR).is_dir():
            raise PackageError(f"the champion is unreachable, and there is no {MODELS / EDITOR} here: {error}") from error
        print(f"{error}; using {MODELS / EDITOR} instead of the champion", file=sys.stderr, flush=True)
        return MODELS, str(MODELS / EDITOR)
    if not (MODELS / EDITOR).is_dir():
        raise PackageError(
            f"no champion is registered and there is no {MODELS / EDITOR} here; run `uv run retrain` or name a model"
        )
    return MODELS, str(MODELS / EDITOR)


def find_package(folder: str | Path) -> Path:
    """The package at a folder, or around an editor folder; an editor folder outside a package is its own package."""
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
    """The editor folder of a package."""
    return root / EDITOR if (root / EDITOR).is_dir() else root


def _is_editor(folder: Path) -> bool:
    from emuedit.models.model_sources import EDITOR as KIND

    if not (folder / EDITOR_FILE).is_file():
        return False
    try:
        return json.loads((folder / EDITOR_FILE).read_text(encoding="utf-8")).get(KIND.key) in KIND.accepts
    except ValueError:  # damaged: loading it gives the error
        return True


def read_settings(root: Path) -> EditSettings:
    """The settings of a package: from its `settings.json`, or from the `params.yaml` next to a workspace's `models/`."""
    if (root / SETTINGS_FILE).is_file():
        return EditSettings().with_changes(json.loads((root / SETTINGS_FILE).read_text(encoding="utf-8")))
    params_file = root.resolve().parent / config.PARAMS_FILE
    if root.resolve().name == MODELS.name and params_file.is_file():
        return EditSettings().with_changes(config.read_yaml(params_file).get("evaluation", {}).get("settings", {}))
    return EditSettings()
