"""The manifest of a registered model: all files of the logged model with their hashes, among them those that are executed.

    MLmodel  pyfunc_model.py  requirements.txt ...  code/emuedit/  artifacts/{manifest.json, settings.json, editor/, ...}
    manifest.json       the hash of each of these files

The hash of the manifest is a tag of the version, so whoever can change files in the artifact store, but no tags in the registry,
cannot change a version unnoticed. `artifacts/manifest.json` is for programs that have only this folder.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emuedit.data.file_manifest import MANIFEST_FILE, ManifestError, check_manifest, hash_files, write_manifest
from emuedit.tracking.mlflow_client import client

MANIFEST_TAG = "emuedit.manifest"
"""Tag of a version with the hash of its manifest, 64 hex digits."""
ARTIFACTS = "artifacts"
_WRITTEN_BY_DOWNLOAD = ("registered_model_meta",)
"""Files that MLflow adds to a downloaded model."""


def add_manifest(logged: Any, parts: Path) -> str:
    """Add `manifest.json` to a logged model, before it is registered. Returns the hash of the manifest.

    parts: local copy of its `artifacts/`. The other files, which MLflow wrote, are hashed as they are in the artifact store.
    """
    import mlflow

    registry_client = client()
    location = registry_client.get_logged_model(logged.model_id).artifact_location
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "copy")
        copy.mkdir()
        for entry in registry_client.list_logged_model_artifacts(logged.model_id):
            if entry.path != ARTIFACTS:
                mlflow.artifacts.download_artifacts(artifact_uri=f"{location.rstrip('/')}/{entry.path}", dst_path=str(copy))
        hashes = hash_files(copy) | {f"{ARTIFACTS}/{name}": value for name, value in hash_files(parts).items()}
        manifest_hash = write_manifest(Path(temporary), hashes)
        registry_client.log_model_artifact(logged.model_id, str(Path(temporary, MANIFEST_FILE)))
    return manifest_hash


def check_files(model: Path, uri: str, tags: Mapping[str, str] | None) -> None:
    """Compare a downloaded model with its manifest.

    tags: of the version; None for the model of a run, which has none: its manifest is checked, but not who wrote it.
    Raises ManifestError for other files, and for a version without a manifest or without the tag with its hash.
    """
    manifest_hash = (tags or {}).get(MANIFEST_TAG, "")
    if tags is not None and not manifest_hash:
        raise ManifestError(
            f"want the tag {MANIFEST_TAG} of {uri} with the hash of its {MANIFEST_FILE}, got none, so its files may not be those "
            "that were registered; register it again with `uv run retrain`"
        )
    check_manifest(model, expected_hash=manifest_hash, ignored=_WRITTEN_BY_DOWNLOAD)
    check_manifest(model / ARTIFACTS, is_required=(model / MANIFEST_FILE).is_file())
