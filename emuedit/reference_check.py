"""Check the models, files, folders, functions and tasks that `params.yaml` names, without loading them."""

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emuedit.config import renamed_hint
from emuedit.data.dependencies import CODE_ROOT, PIPELINE_FILE, find_file
from emuedit.metrics.benchmark_folder import TABLE, missing_files
from emuedit.models import llm_loading, model_files, model_sources
from emuedit.models.model_files import base_model_sizes
from emuedit.models.model_sources import HUB_ID
from emuedit.name_hints import closest_match
from emuedit.tasks import ALL_TASKS, HELD_OUT, UnknownTaskError, get_task

_MODELS = ("base_model", "base_editor", "detector", "segmenter", "clip", "dino", "depth", "t5")
MODELS_OR_FOLDERS = (*_MODELS, "llm")
"""Keys of `world` that name either a local file or folder, which is a dep, or a remote model, which is not."""
_FILES = {
    "instructions": ("prompts", "moderation"),
    "router": ("non_instructions",),
}
"""Section -> keys that name a file or folder and have defaults."""
_TASK_LISTS = {"instructions": "tasks", "evaluation": "tasks", "train": "task_weights"}
_READ_MIX = ("dataset", "validation", "train")
"""Stages that read the folders of `dataset.mix`."""


def problems(params: Mapping[str, Any], stages: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Lines such as `world.clip: want ..., got ...`. `stages`: the stages of `dvc.yaml`. Values of wrong types are skipped."""
    world = as_mapping(params.get("world"))
    for key, check in _CHECKS.items():
        if isinstance(reference := world.get(key), str):
            yield from (f"world.{key}: {problem}" for problem in check(reference, root))
    yield from _concurrency_problems(params, world)
    for section, keys in _FILES.items():
        for key in keys:
            name = as_mapping(params.get(section)).get(key)
            if isinstance(name, str) and not find_file(name, root).exists():
                yield f"{section}.{key}: want an existing file or folder, got none at {name}{_hint(name, root)}"
    yield from _task_problems(params)
    yield from _mix_problems(as_mapping(params.get("dataset")), stages, root)
    yield from _dep_problems(world, stages, root)
    yield from _size_problems(params, world, root)


def _caption_problems(reference: str, root: Path) -> Iterator[str]:
    from emuedit.data import caption_sources  # imports pyarrow

    path = find_file(reference, root)
    if not path.exists():
        yield f"want an existing file or folder, got none at {reference}{_hint(reference, root)}"
    elif path.is_file() and path.suffix not in caption_sources.SUFFIXES:
        yield f"want {', '.join(caption_sources.SUFFIXES)} or a dataset's folder, got {reference}"
    elif path.suffix == ".py":
        yield from _function_problems(reference, root, "captions")


def model_problems(reference: str, root: Path) -> Iterator[str]:
    """Problems of the name of a model: a folder with incomplete files, and what is neither a folder nor a hub id."""
    file = find_file(reference, root)
    if file.is_file():
        yield f"want a folder or hub id, got {model_sources.describe_file(reference)}"
    if file.is_dir():
        yield from (f"{reference}/{problem}; copy or download it again" for problem in model_files.problems(file))
    if file.exists() or "://" in reference or reference.startswith(("models:/", "runs:/")):
        return
    first = Path(reference).parts[0] if Path(reference).parts else ""
    is_path = reference.startswith(("/", ".", "~")) or reference.count("/") > 1 or find_file(first or "-", root).is_dir()
    if is_path or not HUB_ID.fullmatch(reference):
        names = "'owner/name' or 'owner/name@<full commit>'"
        yield f"want an existing file or folder, or a hub id {names}, got {reference!r}{_hint(reference, root)}"


def _checkpoint_problems(reference: str, root: Path) -> Iterator[str]:
    """Problems of the segmenter: segment-anything loads it only from a file or folder."""
    file = find_file(reference, root)
    if file.is_file():
        if problem := model_files.checkpoint_problem(file):
            yield f"{reference}: {problem}; copy or download it again"
    elif file.is_dir():
        yield from model_problems(reference, root)
    else:
        yield f"want an existing file or folder, got {reference!r}{_hint(reference, root)}"


def _concurrency_problems(params: Mapping[str, Any], world: Mapping[str, Any]) -> Iterator[str]:
    llm = world.get("llm")
    concurrency = as_mapping(params.get("instructions")).get("concurrency", 4)  # default of the stage, which is not imported here
    if isinstance(llm, str) and llm_loading.is_local(llm) and isinstance(concurrency, int) and concurrency > 1:
        yield f"instructions.concurrency: want 1 for a chat model on this machine ({llm}), got {concurrency}"


def _llm_problems(reference: str, root: Path) -> Iterator[str]:
    if reference.startswith(("http://", "https://")):
        if not reference.partition("#")[2]:
            yield f"want the model's name after '#', such as {reference}#my-model"
        return
    module, colon, function = reference.partition(":")
    if not colon:
        yield from model_problems(reference, root)
        return
    file = module.replace(".", "/") + ".py"
    if find_file(file, root).exists():  # other modules may be installed; only an import would tell
        yield from _function_problems(file, root, function)
    elif find_file(module.split(".")[0], root).is_dir():
        yield f"want an importable 'module:factory', got {reference!r}: no {file}{_hint(file, root) or renamed_hint(reference)}"


def _function_problems(reference: str, root: Path, function: str) -> Iterator[str]:
    """Whether a Python file defines a function, or imports the name, without running the file."""
    path = find_file(reference, root)
    if not path.is_file() or path.suffix != ".py":
        yield f"want an existing Python file, got {reference}{_hint(reference, root)}"
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield f"{reference} is not valid Python: {error}"
        return
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if function not in names and "*" not in names:
        listed = ", ".join(sorted(names)) or "none"
        yield f"want a function {function} in {reference}, got {listed}{closest_match(function, names)}"


def _benchmark_problems(reference: str, root: Path) -> Iterator[str]:
    path = find_file(reference, root)
    if path.is_dir():
        yield from missing_files(path).values()
    elif path.exists() or path.suffix:
        yield from _function_problems(reference, root, "edits")
    else:
        yield f"want a folder with {TABLE}, or a Python file, got none at {reference}"


_CHECKS: dict[str, Callable[[str, Path], Iterator[str]]] = {
    "captions": _caption_problems,
    **dict.fromkeys(_MODELS, model_problems),
    "segmenter": _checkpoint_problems,  # replaces that of _MODELS
    "llm": _llm_problems,
    "annotators": partial(_function_problems, function="annotate"),
    "benchmark": _benchmark_problems,
}
"""Key of `world` -> the check of its value."""


def _task_problems(params: Mapping[str, Any]) -> Iterator[str]:
    for section, key in _TASK_LISTS.items():
        for name in _texts(params, section, key):
            try:
                is_trained = get_task(name).index is not None
            except UnknownTaskError as error:
                yield f"{section}.{key}: {error}"
                continue
            if section != "evaluation" and not is_trained:
                yield f"{section}.{key}: {name} is learned by inversion only; want tasks out of {', '.join(ALL_TASKS)}"
    inversion = as_mapping(params.get("inversion"))
    learned = inversion.get("task") if inversion.get("enabled", True) else "none: inversion.enabled is false"
    for name in _texts(params, "evaluation", "tasks"):
        if isinstance(learned, str) and name in {task.name for task in HELD_OUT} - {learned}:
            yield f"evaluation.tasks: {name} is neither a trained task nor the task of inversion ({learned}); remove it"


def _texts(params: Mapping[str, Any], section: str, key: str) -> list[str]:
    """The texts in a list; empty if the value is not a list, which the params model rejects."""
    values = as_mapping(params.get(section)).get(key)
    return [value for value in values if isinstance(value, str)] if isinstance(values, list | tuple) else []


def _mix_problems(dataset: Mapping[str, Any], stages: Mapping[str, Any], root: Path) -> Iterator[str]:
    for folder in map(str, as_mapping(dataset.get("mix"))):
        if not (root / folder / "summary.json").is_file():
            yield f"dataset.mix: want imported pairs (`emuedit import`), got none at {folder}{_hint(folder, root)}"
        for name in (stage for stage in _READ_MIX if stage in stages):
            deps = [str(dep if isinstance(dep, str) else next(iter(dep))) for dep in stages[name].get("deps", ())]
            if not any(Path(folder).is_relative_to(dep) for dep in deps):
                yield f"dataset.mix: {folder} is missing from the deps of {name} in {PIPELINE_FILE}; add it there"


def _dep_problems(world: Mapping[str, Any], stages: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Local models missing from the deps of the stages that use them, and deps on models that are not local."""
    for key in MODELS_OR_FOLDERS:
        if not isinstance(reference := world.get(key), str):
            continue
        file, interpolated = find_file(reference, root), f"${{world.{key}}}"
        for name, stage in stages.items():
            listed = as_mapping(stages.get(name)).get("params")
            if not isinstance(listed, list) or f"world.{key}" not in listed:
                continue
            deps = [dep for dep in stage.get("deps", ()) if isinstance(dep, str)]
            is_dep = interpolated in deps or any(file.resolve().is_relative_to(find_file(dep, root).resolve()) for dep in deps)
            if file.exists() and not is_dep:
                yield f'{PIPELINE_FILE}: want "{interpolated}" in the deps of {name}, since world.{key} is a local file or folder'
            if not file.exists() and interpolated in deps and key != "segmenter":  # it must be local, see `_checkpoint_problems`
                yield f'{PIPELINE_FILE}: "{interpolated}" in the deps of {name} is not a local file ({reference}); remove it'


def _size_problems(params: Mapping[str, Any], world: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Incompatible sizes."""
    n_captions = as_mapping(params.get("instructions")).get("n_captions")
    n_rows = as_mapping(params.get("captions")).get("n_rows")
    if isinstance(n_captions, int) and isinstance(n_rows, int) and n_captions > n_rows:
        yield f"instructions.n_captions: want at most the {n_rows} rows of captions.n_rows, got {n_captions}"
    resolution = as_mapping(params.get("train")).get("resolution")
    sizes = base_model_sizes(find_file(str(world.get("base_model")), root))
    if isinstance(resolution, int) and sizes and resolution % (grid_px := sizes.grid_px):
        near = max(1, round(resolution / grid_px)) * grid_px
        yield f"train.resolution: want a multiple of {grid_px} px, the base model's grid, got {resolution}; use {near}"


def _hint(reference: str, root: Path) -> str:
    return renamed_hint(reference) or _near(reference, root)


def _near(reference: str, root: Path) -> str:
    """`; did you mean 'x'?` for a path that exists if one part is changed, in the workspace or next to the code."""
    parts = Path(reference).parts
    for depth, part in enumerate(parts):
        parents = [base.joinpath(*parts[:depth]) for base in (root, CODE_ROOT)]
        if any((parent / part).exists() for parent in parents):
            continue
        names = {entry.name for parent in parents if parent.is_dir() for entry in parent.iterdir()}
        close = difflib.get_close_matches(part, names, n=1)
        return f"; did you mean {Path(*parts[:depth], close[0], *parts[depth + 1 :]).as_posix()!r}?" if close else ""
    return ""


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping; else an empty one, since the params models reject other types."""
    return value if isinstance(value, Mapping) else {}
