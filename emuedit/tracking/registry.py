"""The registered model `emuedit-editor`: its versions, and the aliases `champion`, `challenger` and `previous`.

A version is one folder of parts (the editor, the router, task packs), in formats that cannot run code. It contains the
required code, so it can be loaded without an installation of this project.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit.data.atomic_file import link_or_copy
from emuedit.data.file_manifest import SETTINGS_FILE, write_manifest
from emuedit.tracking import model_cache, model_signature, moved_store, service_errors, signed_files
from emuedit.tracking.mlflow_client import client, fluent_api
from emuedit.tracking.service_errors import hide_password, shown_uri

MODEL_NAME = "emuedit-editor"
CONTENT_TAG = "emuedit.content"
"""Tag with equal values for versions with equal weights and metrics."""
RUN_REASON_TAG = "reason"
"""Tag of a run and its version: why the run was started."""
SCHEME = "models:/"
RUNS_SCHEME = "runs:/"
_PACKAGE = Path(__file__).resolve().parents[1]  # the code that is stored with a version
_ALLOWED_SUFFIXES = {".safetensors", ".json", ".jsonl", ".txt", ".model", ".md", ".csv", ".parquet", ".png"}
_MAX_TAG_CHARS = 5000  # MLflow refuses longer values
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a version or alias that does not exist, or was deleted."""


class RegistryError(ValueError):
    """Raised if a model cannot be registered or found."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model."""

    number: int
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    created_ms: int = 0
    """Time of registration, in ms since 1970."""

    @property
    def uri(self) -> str:
        """URI for MLflow and for `emuedit edit --model`."""
        return f"{SCHEME}{MODEL_NAME}/{self.number}"


def find_version(content: str) -> ModelVersion | None:
    """The newest version with this content tag, if there is one."""
    versions = client().search_model_versions(f"name = '{MODEL_NAME}'")
    matches = [_to_model_version(version) for version in versions if version.tags.get(CONTENT_TAG) == content]
    return max(matches, key=lambda version: version.number, default=None)


def delete_duplicate_version(version: ModelVersion) -> ModelVersion:
    """Delete `version` if an earlier one has the same content. Returns the first version with this content.

    Retrains in two folders may register the same content at the same moment; the lower version number was first.
    """
    versions = client().search_model_versions(f"name = '{MODEL_NAME}'")
    content = version.tags.get(CONTENT_TAG)
    duplicates = [_to_model_version(other) for other in versions if other.tags.get(CONTENT_TAG) == content]
    first = min(duplicates, key=lambda duplicate: duplicate.number, default=version)
    if first.number < version.number:
        client().delete_model_version(MODEL_NAME, str(version.number))
        return first
    return version


def version_at(alias: str) -> ModelVersion | None:
    """The version with an alias, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return _to_model_version(client().get_model_version_by_alias(MODEL_NAME, alias))
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def set_version_tags(number: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version; values are cut to 5,000 characters, MLflow's limit."""
    for key, value in tags.items():
        client().set_model_version_tag(MODEL_NAME, str(number), key, value[:_MAX_TAG_CHARS])


def set_description(number: int, text: str) -> None:
    """Set the description of a version, as Markdown."""
    client().update_model_version(MODEL_NAME, str(number), description=text)


def get_version(number: int) -> ModelVersion:
    """A version by its number. Raises RegistryError for a version that does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return _to_model_version(client().get_model_version(MODEL_NAME, str(number)))
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RegistryError(f"want a version of {MODEL_NAME}, got {number} ({error.message}); see `emuedit models`") from error


def has_version(number: int) -> bool:
    """Whether a version exists: a version can be deleted in MLflow at any time, and its aliases with it."""
    try:
        get_version(number)
    except RegistryError:
        return False
    return True


def all_versions() -> list[ModelVersion]:
    """Every version, the oldest first."""
    versions = client().search_model_versions(f"name = '{MODEL_NAME}'")
    return sorted(map(_to_model_version, versions), key=lambda version: version.number)


def register_version(
    run_id: str,
    parts: Mapping[str, Path],
    model_file: Path,
    settings: Mapping[str, float | int],
    tags: Mapping[str, str],
) -> ModelVersion:
    """Log the parts as a model of the run, and register it as the next version with `tags`.

    `parts`: name -> folder. `model_file`: a Python file that ends in `mlflow.models.set_model(...)`; it is stored together
    with the code of this package. `settings`: names and defaults of the params of `predict`. Raises RegistryError if a part is
    missing or contains files that could run code, and if the model fails on its input example.
    """
    with service_errors.local("readable parts of the model"):
        for name, folder in parts.items():
            check_part(name, folder)
    mlflow = fluent_api()
    collected = model_signature.collect_example_errors()
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run(run_id=run_id), collected as errors:
        code_copy, part_copies = Path(temporary, _PACKAGE.name), Path(temporary, "parts")
        with service_errors.local("readable parts of the model"):
            shutil.copytree(_PACKAGE, code_copy, ignore=_ignore_all_but_code)
            part_copies.mkdir()
            for name, folder in parts.items():  # MLflow names a part after its folder, and refuses external symbolic links
                shutil.copytree(folder, part_copies / name, copy_function=link_or_copy)
            (part_copies / SETTINGS_FILE).write_text(json.dumps(dict(settings), indent=1) + "\n", encoding="utf-8")
            write_manifest(part_copies)
        with service_errors.transferring():
            logged = mlflow.pyfunc.log_model(
                name=MODEL_NAME,
                python_model=str(model_file),
                artifacts={path.stem: str(path) for path in sorted(part_copies.iterdir())},
                code_paths=[str(code_copy)],
                signature=model_signature.signature(settings),
                input_example=model_signature.input_example(parts),
                pip_requirements=model_signature.requirements(),
            )
        if errors:
            raise RegistryError(f"not registered: the model fails on its input example: {errors[0]}")
        with service_errors.transferring():
            manifest_hash = signed_files.add_manifest(logged, part_copies)
        version_tags = {key: value[:_MAX_TAG_CHARS] for key, value in tags.items()} | {signed_files.MANIFEST_TAG: manifest_hash}
        registered = mlflow.register_model(logged.model_uri, MODEL_NAME, tags=version_tags)
    return ModelVersion(int(registered.version), run_id, version_tags, created_ms=registered.creation_timestamp)


def download_version(uri: str) -> Path:
    """Folder with the parts of `models:/emuedit-editor@champion`, `models:/emuedit-editor/3` or `runs:/<run id>/<name>`.

    Raises the errors of `download_model`.
    """
    return download_model(uri) / signed_files.ARTIFACTS


def numbered_uri(uri: str) -> str:
    """The URI of the version that an alias such as `models:/emuedit-editor@champion` names now. Raises as `download_model`."""
    return _find_registered_model(uri).uri


def download_model(uri: str) -> Path:
    """Folder with the whole model, as MLflow serves it: its parts, and the code with which it was registered.

    A model is downloaded once, its files are checked, and it is kept in the cache folder of the user, see `model_cache`. Raises
    RegistryError if there is no such model or its files are missing, ManifestError if its files are not those that were
    registered, and ServiceError if MLflow or its artifact store cannot be used now: then it is unknown whether there is such a
    model.
    """
    source = _find_model(uri)
    return model_cache.get(source.cache_name, lambda folder: _download(source, uri, folder))


@dataclass(frozen=True)
class _ModelSource:
    """Where a model is downloaded from."""

    uri: str
    """Of a version, not of an alias, or of the model of a run."""
    cache_name: str
    """Name of its folder in the cache."""
    tags: Mapping[str, str] | None
    """Tags of the version; None for the model of a run."""


def _find_model(uri: str) -> _ModelSource:
    return _find_run_model(uri) if uri.startswith(RUNS_SCHEME) else _find_registered_model(uri)


def _download(source: _ModelSource, uri: str, folder: Path) -> Path:
    try:
        with service_errors.transferring():
            model = Path(fluent_api().artifacts.download_artifacts(artifact_uri=source.uri, dst_path=str(folder)))
    except Exception as error:  # of MLflow, its HTTP library or the client of an artifact store
        is_missing = service_errors.means_missing(error)
        if not is_missing and not service_errors.is_away(error):
            raise
        service_errors.check()
        reason = service_errors.one_line(error)
        if not is_missing:
            problem = f"a download from the artifact store of {shown_uri()} failed ({reason}); solve this and try again"
            kind = service_errors.FullDiskError if service_errors.means_full_disk(error) else service_errors.ServiceError
            raise kind(f"{uri} was not downloaded, because {problem}") from error
        place = moved_store.old_place(Path.cwd())
        advice = f"this workspace was moved from {place}; run `emuedit sync --moved`" if place else "choose another model"
        raise RegistryError(f"{shown_uri()} has no model at {uri} ({reason}); {advice}") from error
    if not (model / signed_files.ARTIFACTS).is_dir():  # the download is empty if the store has no files
        raise RegistryError(f"{shown_uri()} lists {uri}, but its files are missing in the artifact store; choose another one")
    signed_files.check_files(model, uri, source.tags)
    return model


def _find_registered_model(uri: str) -> _ModelSource:
    """The current version of `models:/name@alias` or `models:/name/number`."""
    from mlflow.exceptions import MlflowException

    name, _, selector = uri.removeprefix(SCHEME).replace("@", "/@").partition("/")
    if not uri.startswith(SCHEME) or not name or not selector.removeprefix("@"):
        raise RegistryError(f"want {SCHEME}{MODEL_NAME}@champion or {SCHEME}{MODEL_NAME}/1, got {uri}")
    try:
        with service_errors.converted():
            if selector.startswith("@"):
                version = client().get_model_version_by_alias(name, selector[1:])
            else:
                version = client().get_model_version(name, selector)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RegistryError(
            f"{shown_uri()} has no {uri} ({hide_password(error.message)}); run `uv run retrain`, or name a folder"
        ) from error
    tags = dict(version.tags)
    content = tags.get(signed_files.MANIFEST_TAG, "")[:16] or tags.get(CONTENT_TAG) or version.run_id
    return _ModelSource(f"{SCHEME}{name}/{version.version}", f"{version.name}-{version.version}-{content}", tags)


def _find_run_model(uri: str) -> _ModelSource:
    run_id, _, name = uri.removeprefix(RUNS_SCHEME).partition("/")
    if not run_id or not name:
        raise RegistryError(f"want {RUNS_SCHEME}<run id>/{MODEL_NAME}, got {uri}")
    return _ModelSource(uri, f"{name.replace('/', '-')}-{run_id}", None)


def _to_model_version(version: Any) -> ModelVersion:
    aliases = tuple(version.aliases or ())
    return ModelVersion(int(version.version), str(version.run_id), dict(version.tags), aliases, version.creation_timestamp)


def check_part(name: str, folder: Path) -> None:
    """Raise RegistryError if a part is missing, or contains files of a format that can run code."""
    if not folder.is_dir():
        raise RegistryError(f"want the folder of part {name!r} of the model, got none at {folder}; run its stage")
    refused = [file.name for file in folder.rglob("*") if file.is_file() and file.suffix not in _ALLOWED_SUFFIXES]
    if refused:
        raise RegistryError(
            f"want safetensors, JSON, Parquet and PNG only in {folder}, got {refused[:5]}; other formats can run code"
        )


def _ignore_all_but_code(folder: str, names: list[str]) -> list[str]:
    """Names that `shutil.copytree` ignores: everything except Python files and folders."""
    return [name for name in names if not (name.endswith(".py") or Path(folder, name).is_dir())]
