"""Rules of the code base. Each failure says what is wanted and what to do about it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONGEST_FILES, SHARED_SERVERS
from tests.repository import ROOT, module_name, python_files, tracked_files

PACKAGES = ("emuedit", "toyworld", "flows", "bench", "tests")
MAX_LINES = 300
MAX_WEIGHTS_BYTES = 60_000_000  # a checkout has 10 MB of other files
LONGER: dict[str, str] = {}  # file over MAX_LINES -> why it must be one file
TOO_GENERAL = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
SECRET = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b(ghp|gho|github_pat|hf|sk)_[A-Za-z0-9_]{20,}")
MACHINE_PATH = re.compile(r"(?<![\w.$}-])/(home|root|Users|work|mnt|media|scratch)/\w+|[A-Z]:\\Users\\")
PACKAGE_INDEX = re.compile(r"(index-url|extra-index-url|find-links|registry)\s*[=:]\s*\"?https?://([\w.-]+)", re.IGNORECASE)
PRIVATE_ADDRESS = re.compile(r"(?<![\w.])(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d+\.\d+(?![\w.])")
PUBLIC_INDEXES = {"pypi.org", "files.pythonhosted.org"}


@pytest.mark.slow
def test_imports_point_down() -> None:
    linter = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    process = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-1000:]


LIGHT_MODULES = (
    "tasks",
    "config",
    "progress",
    "name_hints",
    "data.records",
    "runtime",
    "processes",
    "tracking",
    "editor.settings",
    "cli",
)


@pytest.fixture(scope="module")
def imports() -> dict[str, Any]:
    """What importing every module of the product does, in a process that imports the light ones first, and then the stages."""
    light = ["emuedit", *(f"emuedit.{name}" for name in LIGHT_MODULES)]
    stages = [module_name(path) for path in python_files("emuedit") if path.parent.name == "stages"]
    names = [module_name(path) for path in python_files("emuedit") if path.stem != "__main__"]
    command = [sys.executable, "-W", "ignore", "tests/import_everything.py", *light, "--", *stages, "--", *names]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # this tree, wherever the environment installed its own
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    result: dict[str, Any] = json.loads(process.stdout)
    return result


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_imports_have_no_effects_and_need_no_orchestrator(imports: dict[str, Any]) -> None:
    assert imports["effects"] == []


@pytest.mark.slow
def test_light_modules_do_not_import_torch(imports: dict[str, Any]) -> None:
    """Params, records, seeds and tasks do not cost the seconds that torch takes to import."""
    assert imports["heavy"][0] == []


@pytest.mark.slow
def test_stages_import_libraries_of_models_only_where_a_model_is_loaded(imports: dict[str, Any]) -> None:
    """So `retrain` checks the params of all stages in seconds; diffusers and transformers would take ten more."""
    assert imports["heavy"][1] == ["torch"]


def test_files_can_be_read_at_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(*PACKAGES)}
    long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert set(long) == set(LONGER), f"want files of {MAX_LINES} lines at most, split {long} or say why in LONGER"


def test_no_file_has_a_name_that_says_nothing() -> None:
    for path in python_files(*PACKAGES):
        parts = {part.removeprefix("_").removeprefix("test_") for part in path.relative_to(ROOT).with_suffix("").parts}
        assert not parts & TOO_GENERAL, f"{path}: a helper lives with its idea or is named after what it does"


def test_tests_mirror_the_tree() -> None:
    """`tests/<package>/` tests the package of that name; `tests/doors/` has the cases of odd input, for all packages."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")}
    packages = {path.parent.name for path in python_files("emuedit") if path.parent.parent == ROOT / "emuedit"}
    assert folders - packages <= {"flows", "toyworld", "bench", "infra", "doors"}


@pytest.mark.slow
def test_no_code_asks_for_the_toy_world() -> None:
    """One code path: no condition in the product depends on whether the world is the toy world."""
    for path in python_files("emuedit", "flows"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "toy" in text else ():
            condition = node if isinstance(node, ast.Compare | ast.match_case) else getattr(node, "test", None)
            words = [str(getattr(part, "value", getattr(part, "id", ""))) for part in ast.walk(condition)] if condition else []
            words += [part.attr for part in ast.walk(condition) if isinstance(part, ast.Attribute)] if condition else []
            line = getattr(condition, "lineno", 0)
            assert not any(re.search(r"\btoy|_toy\b", word) for word in words), f"{path}, line {line}: asks for the toy world"


def test_core_is_pure() -> None:
    forbidden = {"diffusers", "transformers", "safetensors", "pyarrow", "yaml", "logging", "os", "pathlib", "io"}
    paths = [path for path in python_files("emuedit") if path.is_relative_to(ROOT / "emuedit" / "core")]
    assert paths, "want the modules of emuedit/core, got none; correct the folder here"
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            imported = {name.split(".")[0] for name in names} & forbidden
            assert not imported, f"{path} imports {imported}; core takes tensors and numbers and returns them"


@pytest.mark.slow
def test_tracked_text_has_no_secret_and_no_machine() -> None:
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192] or path == Path(__file__).resolve():
            continue
        text = content.decode("utf-8", errors="replace")
        for kind, pattern in {"secret": SECRET, "machine path": MACHINE_PATH, "private address": PRIVATE_ADDRESS}.items():
            match = pattern.search(text) if path.name != "uv.lock" or kind == "secret" else None
            assert not match, f"{path}: {kind} {match and match.group()!r}"
        for match in PACKAGE_INDEX.finditer(text):
            assert match.group(2) in PUBLIC_INDEXES, f"{path}: package index {match.group(2)}"


def test_weights_are_small_and_safe() -> None:
    weights = [path for path in tracked_files() if path.suffix in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}]
    assert sum(path.stat().st_size for path in weights) <= MAX_WEIGHTS_BYTES
    assert {path.suffix for path in weights} <= {".safetensors"}, "want safetensors: the other formats can run code"


def test_the_lock_file_names_public_indexes_only() -> None:
    assert set(re.findall(r"https?://([\w.-]+)", (ROOT / "uv.lock").read_text())) == PUBLIC_INDEXES


def test_the_files_that_the_scheduler_of_the_tests_names_exist() -> None:
    names = [*LONGEST_FILES, *(f"{name}.py" for files in SHARED_SERVERS.values() for name in files)]
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []
