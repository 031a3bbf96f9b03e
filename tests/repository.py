"""What the architecture tests read: the tracked files, the import graph and the pipeline."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "params.yaml").read_text())
NO_EFFECT_ON_RESULTS = {
    "emuedit": "the lazy public API, which imports the editor on first use",
    "emuedit.name_hints": "the text of errors",
    "emuedit.params_check": "what is refused before anything runs",
    "emuedit.reference_check": "the same",
    "emuedit.progress": "what is shown meanwhile",
    "emuedit.process_identity": "the names of processes and workspaces in records",
}
"""Modules that stages import and that cannot change a result; a change in them makes nothing out of date."""


def tracked_files() -> tuple[Path, ...]:
    """Files that git has or would take."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return tuple(ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    """Tracked Python files below the given folders of the root."""
    paths = [path for path in tracked_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]
    assert paths, f"want Python files in {folders}, got none"
    return paths


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def module_file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def import_graph() -> grimp.ImportGraph:
    """Imports within emuedit and toyworld, without those of NO_EFFECT_ON_RESULTS."""
    graph = grimp.build_graph("emuedit", "toyworld", cache_dir=None, exclude_type_checking_imports=True)
    for module in NO_EFFECT_ON_RESULTS:
        for imported in graph.find_modules_directly_imported_by(module):
            graph.remove_import(importer=module, imported=imported)
        for importer in graph.find_modules_that_directly_import(module):
            graph.remove_import(importer=importer, imported=module)
    return graph


def import_closure(module: str) -> set[Path]:
    """Files that importing `module` runs: its own, those that it imports, and the packages that they lie in."""
    names = {module, *import_graph().find_upstream_modules(module)}
    packages = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    return {path for path in map(module_file, (names | packages) - set(NO_EFFECT_ON_RESULTS)) if path.exists() and has_code(path)}


@cache
def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring: an `__init__.py` that does not cannot change a result."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def fill_in(dep: str) -> str:
    """A dep of dvc.yaml with `${a.b}` read from params.yaml."""
    for reference in re.findall(r"\$\{([\w.]+)\}", dep):
        value: Any = PARAMS
        for key in reference.split("."):
            value = value[key]
        dep = dep.replace(f"${{{reference}}}", value)
    return dep


def deps(stage: str) -> list[Path]:
    """The deps of a stage, as paths."""
    return [ROOT / fill_in(dep) for dep in STAGES[stage]["deps"]]


def world_references(stage: str) -> set[str]:
    """What of the world a stage uses: the values of the keys `world.*` under its params."""
    return {PARAMS["world"][key.removeprefix("world.")] for key in STAGES[stage]["params"] if key.startswith("world.")}


def code_of_stage(stage: str) -> set[Path]:
    """Files that decide a stage's result: what its module imports, and the code that its world names."""
    if stage == "dataset":  # it reads a benchmark that is a folder, and runs none that is code
        return import_closure("emuedit.stages.dataset") | {ROOT / PARAMS["world"]["benchmark"]}
    return import_closure(f"emuedit.stages.{stage}").union(*map(import_closure, _modules_of_world(stage)))


def _modules_of_world(stage: str) -> Iterator[str]:
    for reference in world_references(stage):
        if reference.endswith(".py"):
            yield module_name(ROOT / reference)
        elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", reference):
            yield reference.split(":")[0]
