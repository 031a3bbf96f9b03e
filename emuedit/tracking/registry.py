"""The registered model `emuedit-editor`: versions, the aliases `champion`, `challenger` and `previous`, and where a version lies.

A version is one folder of parts (the editor, the router, task packs), safetensors and JSON only, that loads where this
project is not installed: the code it needs goes with it.
"""

import base64
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit.tracking.runs import client
from emuedit.tracking.stats import tracking_uri

NAME = "emuedit-editor"
CONTENT = "emuedit.content"  # tag: the same for versions that hold and score the same
SCHEME = "models:/"
_WEIGHTS = {".safetensors", ".json", ".jsonl", ".txt", ".model", ".md", ".csv"}
# What the editor needs to answer, whose versions are read from what is installed.
_NEEDED = (
    "accelerate", "diffusers", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "sentencepiece",
    "tokenizers", "torch", "tqdm", "transformers",
)  # fmt: skip


class RegistryError(ValueError):
    """Raised for what cannot be registered or found."""


@dataclass(frozen=True)
class Version:
    """One version of the registered model."""

    number: int
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """As MLflow and `emuedit edit --model` take it."""
        return f"{SCHEME}{NAME}/{self.number}"


def find(content: str) -> Version | None:
    """The newest version with this content."""
    found = client().search_model_versions(f"name = '{NAME}'")
    same = [_version(one) for one in found if one.tags.get(CONTENT) == content]
    return max(same, key=lambda one: one.number, default=None)


def at(alias: str) -> Version | None:
    """The version an alias points to, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(client().get_model_version_by_alias(NAME, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def set_aliases(number: int, champion: bool, previous: int | None) -> None:
    """The version becomes challenger, and champion if so decided; who was champion before becomes `previous`."""
    mlflow = client()
    mlflow.set_registered_model_alias(NAME, "challenger", str(number))
    if champion:
        if previous is not None and previous != number:
            mlflow.set_registered_model_alias(NAME, "previous", str(previous))
        mlflow.set_registered_model_alias(NAME, "champion", str(number))


def register(
    run_id: str,
    parts: Mapping[str, Path],
    model_file: Path,
    package: Path,
    without: tuple[str, ...],
    defaults: Mapping[str, float | int],
    tags: Mapping[str, str],
) -> Version:
    """Log the parts as a model of the run and register it as the next version, with the tags.

    `model_file`: the Python file that ends in `mlflow.models.set_model(...)`. `package`: the folder of Python files it imports,
    copied as far as it is not `without` (names directly below it). `defaults` of steps, s_I, s_T, phi, hold, seed and alpha.
    Raises RegistryError for a part that is missing or holds files that could run code, and for a model that cannot answer.
    """
    for name, path in parts.items():
        _check(name, path)
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id), _failed_examples() as failed:
        code, there = Path(folder, package.name), Path(folder, "parts")
        shutil.copytree(package, code, ignore=_only_python(package, without))
        there.mkdir()
        for name, path in parts.items():  # MLflow names a part after its folder, and refuses links that lead elsewhere
            shutil.copytree(path, there / name, copy_function=_link)
        knobs = there / "defaults.json"
        knobs.write_text(json.dumps(dict(defaults), indent=1) + "\n", encoding="utf-8")
        logged = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(model_file),
            artifacts={path.stem: str(path) for path in sorted(there.iterdir())},
            code_paths=[str(code)],
            signature=_signature(defaults),
            input_example=_example(),
            pip_requirements=requirements(),
        )
        if failed:
            raise RegistryError(f"not registered: the model cannot answer its own example: {failed[0]}")
        made = mlflow.register_model(logged.model_uri, NAME, tags={key: value[:5000] for key, value in tags.items()})
    return Version(int(made.version), run_id, dict(tags))


def requirements() -> list[str]:
    """What the model needs, each in the version that is installed here; a build mark like `+cpu` is left out."""
    found = []
    for name in (*_NEEDED, "mlflow"):
        try:
            found.append(f"{name}=={importlib.metadata.version(name).split('+')[0]}")
        except importlib.metadata.PackageNotFoundError:  # not needed by what is installed here
            continue
    return found


def fetch(uri: str) -> Path:
    """Folder of the parts of `models:/emuedit-editor@champion` or `models:/emuedit-editor/3`.

    A model on this machine is used where it lies; any other is downloaded once and kept in the cache folder.
    Raises RegistryError when there is no such model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    name, _, mark = uri.removeprefix(SCHEME).replace("@", "/@").partition("/")
    if not uri.startswith(SCHEME) or not name or not mark.removeprefix("@"):
        raise RegistryError(f"want {SCHEME}{NAME}@champion or {SCHEME}{NAME}/1, got {uri}")
    try:
        if mark.startswith("@"):
            found = client().get_model_version_by_alias(name, mark[1:])
        else:
            found = client().get_model_version(name, mark)
    except MlflowException as error:
        raise RegistryError(f"{tracking_uri()} has no {uri} ({error.message}); run `uv run retrain`, or name a folder") from error
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kept = Path(home, "emuedit", "models", f"{found.name}-{found.version}-{found.tags.get(CONTENT) or found.run_id}")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            got = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{SCHEME}{name}/{found.version}", dst_path=folder))
            (got / "artifacts").rename(kept)
    return kept


def _version(found: Any) -> Version:
    return Version(int(found.version), str(found.run_id), dict(found.tags), tuple(found.aliases or ()))


def _check(name: str, path: Path) -> None:
    if not path.is_dir():
        raise RegistryError(f"want the folder of part {name!r} of the model, got none at {path}; run its stage")
    odd = [file.name for file in path.rglob("*") if file.is_file() and file.suffix not in _WEIGHTS]
    if odd:
        raise RegistryError(f"want safetensors and JSON only in {path}, got {odd[:5]}; other formats can run code")


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


@contextlib.contextmanager
def _failed_examples() -> Iterator[list[str]]:
    """What MLflow said when it tried a model on its example: it warns only, and goes on."""
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Failed to validate serving input" in record.getMessage():
                found.append(record.getMessage().rsplit("Got error:", 1)[-1].strip())

    ear, voice = Ear(), logging.getLogger("mlflow.models.model")
    voice.addHandler(ear)
    try:
        yield found
    finally:
        voice.removeHandler(ear)


def _only_python(package: Path, without: tuple[str, ...]) -> Any:
    def ignore(folder: str, names: list[str]) -> list[str]:
        gone = set(without) if Path(folder) == package else set()
        return [name for name in names if name in gone or not (name.endswith(".py") or Path(folder, name).is_dir())]

    return ignore


def _signature(defaults: Mapping[str, float | int]) -> Any:
    """Pictures travel as base64 PNG: that works in predict, in `mlflow models serve` and in its page alike."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    asked = [ColSpec(DataType.string, "image"), ColSpec(DataType.string, "instruction")]
    given = [ColSpec(DataType.string, "image"), ColSpec(DataType.string, "task"), ColSpec(DataType.double, "probability")]
    kinds = {
        "steps": DataType.long,
        "s_I": DataType.double,
        "s_T": DataType.double,
        "phi": DataType.double,
        "hold": DataType.double,
        "seed": DataType.long,
        "alpha": DataType.double,
    }
    knobs = [ParamSpec(key, kind, (int if kind is DataType.long else float)(defaults[key])) for key, kind in kinds.items()]
    return ModelSignature(Schema([*asked, ColSpec(DataType.string, "task", required=False)]), Schema(given), ParamSchema(knobs))


def _example() -> Any:
    import pandas as pd
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 140, 200)).save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    return pd.DataFrame({"image": [picture], "instruction": ["make it darker"], "task": [None]})
