"""Metadata that MLflow stores with a registered model: its requirements, its signature and an input example."""

import base64
import contextlib
import importlib.metadata
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_REQUIRED_PACKAGES = (
    "accelerate", "diffusers", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "sentencepiece",
    "tokenizers", "torch", "tqdm", "transformers",
)  # fmt: skip


def requirements() -> list[str]:
    """Packages that the model needs, pinned to the installed versions without local version labels such as `+cpu`."""
    pinned = []
    for name in (*_REQUIRED_PACKAGES, "mlflow"):
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name).split('+')[0]}")
        except importlib.metadata.PackageNotFoundError:  # the installed models do not need it
            continue
    return pinned


@contextlib.contextmanager
def collect_example_errors() -> Iterator[list[str]]:
    """Collect the errors of a model on its input example, which MLflow logs as warnings instead of raising them.

    Independent of MLFLOW_LOGGING_LEVEL; otherwise a failing model would be registered if the level is ERROR.
    """
    errors: list[str] = []

    class ErrorCollector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Failed to validate serving input" in record.getMessage():
                errors.append(record.getMessage().rsplit("Got error:", 1)[-1].strip())

    collector, logger = ErrorCollector(), logging.getLogger("mlflow.models.model")
    environment = logging.getLogger("mlflow.utils.environment")
    level, environment_level = logger.level, environment.level
    environment.setLevel(logging.ERROR)  # it warns about a missing pip, which environments of uv do not have
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    try:
        yield errors
    finally:
        logger.setLevel(level)
        environment.setLevel(environment_level)
        logger.removeHandler(collector)


def signature(settings: Mapping[str, float | int]) -> Any:
    """Signature of the model. Images are base64 PNGs, which work in `predict` and in `mlflow models serve`.

    settings: defaults of the params. The param `mask` adds the output of this name.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    inputs = [
        ColSpec(DataType.string, "image"),
        ColSpec(DataType.string, "instruction"),
        ColSpec(DataType.string, "task", required=False),
    ]
    outputs = [
        ColSpec(DataType.string, "image"),
        ColSpec(DataType.string, "task"),
        ColSpec(DataType.double, "probability"),
        ColSpec(DataType.double, "changed_share"),
        ColSpec(Array(DataType.long), "changed_box"),
        ColSpec(DataType.string, "mask", required=False),
    ]
    params = [
        ParamSpec(key, DataType.long if isinstance(value, int) else DataType.double, value) for key, value in settings.items()
    ]
    mask = ParamSpec("mask", DataType.boolean, False)
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema([*params, mask]))


def input_example(parts: Mapping[str, Path]) -> Any:
    """A table with one small image, to be edited with the editor's first task, which is given so that it need not be predicted.

    `parts`: name -> folder, as in `registry.register_version`.
    """
    import pandas as pd
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 140, 200)).save(stream, "PNG")
    png = base64.b64encode(stream.getvalue()).decode()
    return pd.DataFrame({"image": [png], "instruction": ["make it darker"], "task": [_first_task(parts)]})


def _first_task(parts: Mapping[str, Path]) -> str | None:
    """The editor's first task; None for parts without an editor, so that the task is predicted."""
    file = parts.get("editor", Path()) / "task_embedding" / "config.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["names"][0]) if file.is_file() else None
