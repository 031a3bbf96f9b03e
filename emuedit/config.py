"""Strict configuration: each stage owns a frozen params model, and `params.yaml` has the settings that people change.

Defaults live in the models. Unknown keys, missing keys and wrong types are errors that list the known keys.
"""

import importlib
import inspect
import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from emuedit.name_hints import closest_match, new_name

P = TypeVar("P", bound="Params")

PARAMS_FILE = "params.yaml"


class ParamsError(ValueError):
    """Raised for missing, unknown or invalid parameters."""


def _describe_fields(model: type[BaseModel]) -> str:
    """The fields of a model with their defaults, each followed by its description in indented lines."""
    lines = []
    for name, field in model.model_fields.items():
        default = f"{type(field.default).__name__}(...)" if isinstance(field.default, BaseModel) else repr(field.default)
        lines.append(f"{name}, required" if field.is_required() else f"{name} = {default}")
        lines += [f"    {line}" for line in (field.description or "").splitlines()]
    return "\n".join(lines)


class Params(BaseModel):
    """Base class of all params models: unknown keys are errors, and values are not converted.

    Two exceptions: an integer is accepted for a float, and a list for a tuple.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """List the fields with their defaults and descriptions in the docstring, for `help`."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{_describe_fields(cls)}".strip()

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Expand a section of a parameter file, e.g. by the settings of the preset that it names. Default: unchanged."""
        return values


class World(Params):
    """A caption source and a set of models. Each model is a file or folder relative to the root, or a hub id."""

    name: str
    """Name of the world in reports."""
    captions: str
    """Caption source: a file (.txt, .csv, .jsonl, .parquet), a dataset folder, a .yaml file that names a hub dataset
    (`caption_sources.HubDataset`), or a .py file with `captions(split, start, n) -> list[str]`."""
    base_model: str
    """Text-to-image diffusers pipeline (Stable Diffusion 1.x, 2.x or XL)."""
    base_editor: str | None = None
    """Editor to start training from (`train.start`): folder, hub id or `models:/...`; null: none."""
    detector: str
    """Zero-shot object detector."""
    segmenter: str
    """Segment Anything checkpoint."""
    clip: str
    """open_clip model that scores images against text."""
    dino: str
    """DINO vision transformer that scores images against images."""
    depth: str
    """Monocular depth estimator."""
    llm: str
    """Chat model that writes instructions: hub id or folder, `https://host/v1#model`, or `module:factory`."""
    t5: str
    """T5 to fine-tune as the task predictor."""
    annotators: str
    """A .py file with `annotate(task, images, words, boxes_px, masks)`, which produces the targets of the vision tasks."""
    benchmark: str
    """Edits with a judge: a folder of images (`metrics.photo_benchmark`), or a .py file with `edits(task, split, start, n)`."""


if TYPE_CHECKING:
    _SafeLoader = yaml.SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if available, is eight times as fast


class _Loader(_SafeLoader):
    """YAML as DVC reads it: `1e-4` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise ParamsError(f"key {key!r} is given twice, the second time in line {key_node.start_mark.line + 1}")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(model: type[P], section: str, path: str | Path = PARAMS_FILE) -> P:
    """Read one section of a parameter file into `model`.

    A field named `world` is filled from the file's section `world:`, so that the world is defined once. A model may do without.
    Raises ParamsError, naming file, section and key, for a missing file or section and for unknown, missing or wrong keys.
    """
    path = Path(path)
    content = read_yaml(path)
    values = _section(content, section, path)
    world = model.model_fields.get("world")
    if world is not None and "world" not in values and (world.is_required() or "world" in content):
        values["world"] = _section(content, "world", path)
    where = f"{path}, section '{section}'"
    try:
        return model.model_validate_json(json.dumps(model.complete(values)))  # through JSON: strict, yet lists become tuples
    except TypeError as error:
        raise ParamsError(f"{where}: want only numbers, text, true/false, lists and mappings; got: {error}") from error
    except ValidationError as error:
        lines = "\n".join("  " + _explain(model, section, details) for details in error.errors())
        raise ParamsError(f"{where}:\n{lines}") from error


def describe_values(error: ValidationError, names: Mapping[str, str] | None = None) -> list[str]:
    """The wrong values of a model, one line each: key, problem, value. names: key -> its name in the line, such as an option."""
    problems = ((".".join(map(str, details["loc"])), details) for details in error.errors())
    return [f"{(names or {}).get(key, key)}: {details['msg']}, got {details['input']!r}" for key, details in problems]


def load_optional(model: type[P], section: str, path: str | Path = PARAMS_FILE) -> P:
    """`load`, or the defaults of `model` if there is no such file or section."""
    path = Path(path)
    return load(model, section, path) if path.exists() and section in read_yaml(path) else model()


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, key by key at every level."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def has_conflict_marks(path: Path) -> bool:
    """Whether a file exists and contains git's merge conflict markers."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in lines)


def _explain_yaml(path: Path, error: yaml.YAMLError) -> yaml.YAMLError:
    """Parse again with PyYAML's Python parser, whose error shows the line; libyaml's does not."""
    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as explained:
        return explained
    return error


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping of sections in a YAML file. Raises ParamsError for a missing or invalid file."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except FileNotFoundError as error:
        raise ParamsError(f"want a parameter file, got none at {path.resolve()}; run from the root of the project") from error
    except yaml.YAMLError as error:
        hint = "; it contains merge conflict markers" if has_conflict_marks(path) else ""
        raise ParamsError(f"{path} is not valid YAML: {_explain_yaml(path, error)}{hint}") from error
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from error
    except ValueError as error:  # not UTF-8, or a date that does not exist
        raise ParamsError(f"{path} is not valid YAML in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: want a mapping of sections, got {type(content).__name__}")
    return content


def resolve_path(reference: str, root: str | Path = ".") -> str:
    """Absolute path of a model that exists under `root`; a hub id (`org/name`), a URL or `module:name` is returned as it is.

    Raises ParamsError for a missing path: absolute, with a leading dot, or with two slashes.
    """
    path = Path(root, reference)
    if path.exists():
        return str(path.resolve())
    if "://" in reference:
        return reference
    if reference.startswith(("/", ".")) or reference.count("/") > 1:
        raise ParamsError(
            f"want an existing file or folder, or a hub id 'org/name'; got {reference!r}, not at {path.resolve()}"
            + renamed_hint(reference)
        )
    return reference


def import_function(reference: str, name: str) -> Callable[..., Any]:
    """The function `name` of a Python file. The path is relative to the root; the file is imported by its dotted name.

    Raises ParamsError for a file outside the project, a missing file, and a file without this function.
    """
    path = PurePosixPath(reference)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".py":
        raise ParamsError(f"want a Python file below the root of the project, got {reference}; move it there")
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ParamsError(f"want an importable Python file, got {reference}: {error}{renamed_hint(reference)}") from error
    if not callable(function):
        raise ParamsError(f"want a function {name} in {reference}, got {function!r}")
    return function


def _section(content: Mapping[str, Any], section: str, path: Path) -> dict[str, Any]:
    if section not in content:
        raise ParamsError(
            f"{path}: want section '{section}', got none{closest_match(section, content)}; known: {_names(content)}"
        )
    values = content[section]
    if not isinstance(values, dict):
        raise ParamsError(f"{path}, section '{section}': want keys with values, got {type(values).__name__}")
    return dict(values)


def _explain(model: type[BaseModel], section: str, details: Any) -> str:
    """Format a pydantic error as one line: the key, the problem, and the keys that are known at this level."""
    *parents, last = details["loc"] or ("",)
    names, fields = _fields_at(model, parents)
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        path = (*names, str(last)) if names[:1] == ("world",) else (section, *names, str(last))
        if renamed := new_name(".".join(path)):
            return f"'{key}' is now called '{renamed}'; rename it"
        return f"unknown key '{key}'{closest_match(str(last), fields)}; known: {_names(fields)}"
    if details["type"] == "missing":
        field = fields.get(str(last))
        return f"missing key '{key}': {(field and field.description) or 'add it'}; known: {_names(fields)}"
    value = details["input"]
    return f"key '{key}': {details['msg']}; got {value!r} ({type(value).__name__}); known: {_names(fields)}"


def _fields_at(model: type[BaseModel], parents: Sequence[str | int]) -> tuple[tuple[str, ...], dict[str, FieldInfo]]:
    """Field names on the path `parents` from a model, and the fields that are known at its end.

    Not all `parents` are fields: some are dict keys, list positions or tags of unions.
    """
    models, names = [model], []
    for part in map(str, parents):
        below = [child for m in models if part in m.model_fields for child in _models_in(m.model_fields[part].annotation)]
        chosen = [m for m in models if any(part in get_args(field.annotation) for field in m.model_fields.values())]
        if any(part in m.model_fields for m in models):
            names.append(part)
        models = below or chosen or models
    return tuple(names), {name: field for m in models for name, field in m.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All models in a type annotation, including those inside dicts, tuples and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def renamed_hint(reference: str) -> str:
    """`; it is now 'x'` for a renamed file, folder or module, else an empty string."""
    renamed = new_name(reference)
    return f"; it is now {renamed!r}" if renamed else ""


def _names(keys: Mapping[str, Any]) -> str:
    return ", ".join(sorted(keys)) or "none"
