"""Strict parameters: what stands in `params.yaml` is exactly what a station asked for, or an error that says how to mend it.

Each station owns a frozen model made from `Params`. There are no defaults: a knob that is not in the file is an error,
so that DVC, which hashes the file, sees every knob.
"""

import difflib
import importlib
import json
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

P = TypeVar("P", bound="Params")


class ParamsError(ValueError):
    """Raised when a parameter file does not hold what was asked for."""


class Params(BaseModel):
    """Base of every params model: unknown keys refused, no conversions (`3` for a float, a list for a tuple: accepted)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class World(Params):
    """A caption source and a set of models. Each model is a folder or file relative to the root, or a hub id."""

    name: str
    """What the world is called in reports."""
    captions: str
    """A file (.txt, .csv, .jsonl, .parquet), a dataset's folder, a .yaml file that names one on the hub (`caption_sources.HubDataset`),
    or a .py file with `captions(split, start, n) -> list[str]`."""
    base_model: str
    """Text-to-image diffusers pipeline."""
    detector: str
    """Zero-shot object detector."""
    segmenter: str
    """Segment Anything checkpoint."""
    clip: str
    """Open CLIP model that scores pictures against text."""
    dino: str
    """DINO vision transformer that scores pictures against pictures."""
    depth: str
    """Monocular depth estimator."""
    llm: str
    """Chat model that writes instructions: hub id or folder, `https://host/v1#model`, or `module:factory`."""
    t5: str
    """T5 that the router is fine-tuned from."""
    annotators: str
    """A .py file with `annotate(task, images, words, boxes_px, masks)`, which draws the targets of the vision tasks."""
    benchmark: str
    """A .py file with `edits(task, split, start, n)`, edits whose results are known."""


class _Loader(yaml.SafeLoader):
    """YAML read as DVC reads it: `1e-4` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ParamsError(f"key {key!r} stands twice, the second time in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(model: type[P], section: str, path: str | Path = "params.yaml") -> P:
    """Read one section of a parameter file into `model`.

    A field named `world` is filled from the file's own `world:` section, so that a world is written down once.
    Raises ParamsError, naming file, section and key, for a missing file or section and for unknown, missing or wrong keys.
    """
    path = Path(path)
    content = _read(path)
    values = _section(content, section, path)
    if "world" in model.model_fields and "world" not in values:
        values["world"] = _section(content, "world", path)
    where = f"{path}, section '{section}'"
    try:
        return model.model_validate_json(json.dumps(values))  # JSON: strict, yet lists become tuples
    except TypeError as error:
        raise ParamsError(f"{where}: want numbers, text, true/false, lists and mappings only; got: {error}") from error
    except ValidationError as error:
        found = "\n".join("  " + _explain(model, one) for one in error.errors())
        raise ParamsError(f"{where}:\n{found}") from error


def resolve_path(reference: str, root: str | Path = ".") -> str:
    """Absolute path of a model that exists under `root`; a hub id (`org/name`), a URL or `module:name` comes back as it is.

    Raises ParamsError for what is plainly a path (absolute, with a leading dot or two slashes) and does not exist.
    """
    path = Path(root, reference)
    if path.exists():
        return str(path.resolve())
    if "://" in reference:
        return reference
    if reference.startswith(("/", ".")) or reference.count("/") > 1:
        raise ParamsError(f"want an existing file or folder, or a hub id 'org/name'; got {reference!r}, not at {path.resolve()}")
    return reference


def import_function(reference: str, name: str) -> Callable[..., Any]:
    """The function `name` of a Python file that is named relative to the root, imported by its dotted name there.

    Raises ParamsError for a file outside of the project and for one without such a function.
    """
    path = PurePosixPath(reference)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".py":
        raise ParamsError(f"want a Python file below the root of the project, got {reference}; move it there")
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ParamsError(f"want a function {name} in {reference}, got {found!r}")
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except FileNotFoundError as error:
        raise ParamsError(f"want a parameter file, got none at {path.resolve()}; run from the root of the project") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is no valid YAML: {error}") from error
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: want a mapping of sections, got {type(content).__name__}")
    return content


def _section(content: Mapping[str, Any], section: str, path: Path) -> dict[str, Any]:
    if section not in content:
        raise ParamsError(f"{path}: want section '{section}', got none{_guess(section, content)}; known: {_names(content)}")
    values = content[section]
    if not isinstance(values, dict):
        raise ParamsError(f"{path}, section '{section}': want keys with values, got {type(values).__name__}")
    return dict(values)


def _explain(model: type[BaseModel], error: Any) -> str:
    *parents, last = error["loc"] or ("",)
    for parent in parents:
        inner = getattr(model.model_fields.get(str(parent)), "annotation", None)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    key, known = ".".join(str(part) for part in error["loc"]), model.model_fields
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_guess(str(last), known)}; known: {_names(known)}"
    if error["type"] == "missing":
        return f"missing key '{key}': {known[str(last)].description or 'add it'}; known: {_names(known)}"
    return f"key '{key}': {error['msg']}; got {error['input']!r} ({type(error['input']).__name__}); known: {_names(known)}"


def _guess(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join(sorted(known)) or "none"
