"""The laws of the config. Each says what it wants and what to do about it."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from emuedit.config import Params

ROOT = Path(__file__).resolve().parent.parent
OURS = ("emuedit", "flows", "bench", "tests")
LONGER: dict[str, str] = {}  # file over 300 lines -> why it must be one file
TOO_GENERAL = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
KNOBS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "params.yaml").read_text())
SECRET = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b(ghp|gho|github_pat|hf|sk)_[A-Za-z0-9_]{20,}")
MACHINE = re.compile(r"(?<![\w.$}-])/(home|root|Users|work|mnt|media|scratch)/\w+|[A-Z]:\\Users\\")
HOSTS = re.compile(r"(index-url|extra-index-url|find-links|registry)\s*[=:]\s*\"?https?://([\w.-]+)", re.IGNORECASE)
ADDRESS = re.compile(r"(?<![\w.])(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d+\.\d+(?![\w.])")


def tracked() -> tuple[Path, ...]:
    """Files that git has or would take."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return tuple(ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file())


def modules(*folders: str) -> list[Path]:
    """Python files of ours in the given folders."""
    inside = [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]
    assert inside, f"want Python files in {folders}, got none"
    return inside


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("emuedit", cache_dir=None, exclude_type_checking_imports=True)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def says_something(path: Path) -> bool:
    """Whether a file holds more than a docstring: an `__init__.py` that does not cannot change a result."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def closure(module: str) -> set[Path]:
    """Files of emuedit that importing `module` runs, itself and the packages it lies in included."""
    names = {module, *graph().find_upstream_modules(module)}
    packages = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    return {path for path in map(file_of, names | packages) if path.exists() and says_something(path)}


def filled(dep: str) -> str:
    """A dep of dvc.yaml, `${a.b}` read from params.yaml."""
    for reference in re.findall(r"\$\{([\w.]+)\}", dep):
        value: Any = KNOBS
        for key in reference.split("."):
            value = value[key]
        dep = dep.replace(f"${{{reference}}}", value)
    return dep


def expanded(dep: str) -> Iterator[Path]:
    """A dep of dvc.yaml as files, folders as what they hold."""
    path = ROOT / filled(dep)
    yield from (one for one in path.rglob("*.py") if says_something(one)) if path.is_dir() else [path]


def test_imports_point_down() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.parametrize("stage", STAGES)
def test_one_word_in_four_places(stage: str) -> None:
    """Stage = module = section of params.yaml; the fourth place, the flow, reads the stage from dvc.yaml."""
    word = stage.split("@")[0]
    assert file_of(f"emuedit.{word}").exists(), f"want emuedit/{word}.py for stage {stage}"
    assert STAGES[stage]["cmd"].split()[:3] == ["python", "-m", f"emuedit.{word}"]
    assert word in KNOBS, f"want section {word} in params.yaml"
    assert word in STAGES[stage]["params"], f"want the section {word} under params of stage {stage} in dvc.yaml"


def test_no_section_without_a_stage() -> None:
    assert set(KNOBS) - {"world"} == {stage.split("@")[0] for stage in STAGES}


def test_flows_name_no_stage() -> None:
    for path in modules("flows"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & set(STAGES), f"{path.name} names {words & set(STAGES)}; read the stages from dvc.yaml"


def referred(stage: str) -> dict[str, str]:
    """What of the world a stage uses: the keys under its params, with their values."""
    keys = [key.removeprefix("world.") for key in STAGES[stage]["params"] if key.startswith("world.")]
    return {key: KNOBS["world"][key] for key in keys}


def code_of(reference: str) -> str | None:
    """The module behind a reference such as `a/b.py` or `a.b:factory`; None for data and models."""
    if reference.endswith(".py"):
        return dotted(ROOT / reference)
    return reference.split(":")[0] if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", reference) else None


def wanted_code(stage: str) -> set[str]:
    """Files that decide a stage's result: what its station imports, and what the world brings to it."""
    named = [module for module in map(code_of, referred(stage).values()) if module]
    files = closure(f"emuedit.{stage.split('@')[0]}").union(*map(closure, named))
    return {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_modules_really_imported(stage: str) -> None:
    """Also those that the world brings: change one and DVC must run the stage again."""
    listed = {str(path.relative_to(ROOT)) for dep in STAGES[stage]["deps"] for path in expanded(dep) if path.suffix == ".py"}
    wanted = wanted_code(stage)
    if not any("toyworld" in one for one in wanted):  # a world of your own: what only the toy world needs is then too much
        listed = {one for one in listed if "toyworld" not in one}
    assert listed == wanted, f"too much: {sorted(listed - wanted)}; missing: {sorted(wanted - listed)}"


@pytest.mark.parametrize("stage", STAGES)
def test_model_folders_are_deps(stage: str) -> None:
    """A model that is a folder here may change under its name; a hub id cannot be a dep."""
    folders = {one for one in referred(stage).values() if (ROOT / one).is_dir()}
    lost = folders - {*map(filled, STAGES[stage]["deps"])}
    assert not lost, f"want {sorted(lost)} under deps of {stage}"


@pytest.mark.parametrize("stage", ["dataset", "train"])
def test_mixed_folders_are_deps(stage: str) -> None:
    """DVC cannot make deps of a list: imported pairs are named in params.yaml and in dvc.yaml."""
    lost = {*KNOBS["dataset"]["mix"]} - {*map(filled, STAGES[stage]["deps"])}
    assert not lost, f"want {sorted(lost)} of dataset.mix under deps of {stage} in dvc.yaml"


def test_stages_stand_in_topological_order() -> None:
    made: set[str] = set()
    everything = {out for stage in STAGES.values() for out in stage["outs"]}
    for name, stage in STAGES.items():
        late = {out for out in everything - made for dep in stage["deps"] if Path(dep).is_relative_to(out)}
        assert not late, f"stage {name} needs {late}, made further down in dvc.yaml"
        made |= set(stage["outs"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_station_has_the_same_face(stage: str) -> None:
    path = file_of(f"emuedit.{stage.split('@')[0]}")
    source = path.read_text()
    assert re.search(r"^class Params\(", source, re.MULTILINE)
    assert re.search(r"^def run\(params: Params, root: Path\)", source, re.MULTILINE)
    end = (path.parent / "__main__.py").read_text() if path.name == "__init__.py" else source
    assert len(end[end.index('if __name__ == "__main__":') :].strip().splitlines()) <= 3


def test_every_knob_is_explained() -> None:
    for number, line in enumerate((ROOT / "params.yaml").read_text().splitlines(), start=1):
        if re.match(r"\s+[\w-]+:\s*\S", line):
            assert re.search(r"\s#\s\S", line), f"params.yaml, line {number}: want a comment behind {line.strip()!r}"
    for path in modules("emuedit"):
        if "Params)" in path.read_text() and path.name != "params.py":
            __import__(dotted(path))

    def check(model: type[Params]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"want a line of doc below {model.__module__}.{model.__name__}.{name}"
        for heir in model.__subclasses__():
            if heir.__module__.startswith("emuedit."):
                check(heir)

    check(Params)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_happens_at_import_and_orchestrators_are_not_needed() -> None:
    names = [dotted(path) for path in modules("emuedit") if path.stem != "__main__"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "tests/import_everything.py", *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["deeds"] == []


def test_the_house_is_light() -> None:
    """Params, records, seeds and tasks do not cost the seconds that torch takes to import."""
    names = [
        "emuedit.tasks",
        "emuedit.config",
        "emuedit.records",
        "emuedit.runtime",
        "emuedit.tracking",
        "emuedit.stages.captions",
    ]
    done = subprocess.run([sys.executable, "tests/import_everything.py", *names], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"deeds": [], "heavy": []}, done.stderr[-3000:]


def test_files_fit_one_sitting() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(*OURS)}
    long = {name: lines for name, lines in long.items() if lines > 300}
    assert set(long) == set(LONGER), f"want files of 300 lines at most, split {long} or say why in LONGER"


def test_every_file_has_a_name_of_its_own() -> None:
    for path in modules(*OURS):
        found = {
            part.removeprefix("_").removeprefix("test_") for part in path.relative_to(ROOT).with_suffix("").parts
        } & TOO_GENERAL
        assert not found, f"{path}: {found} says nothing; a helper lives with its idea or gets a name"


def test_no_code_knows_the_toy_world() -> None:
    for path in modules("emuedit", "flows"):
        if path.is_relative_to(ROOT / "emuedit" / "toyworld"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            test = node if isinstance(node, ast.Compare | ast.match_case) else getattr(node, "test", None)
            words = [str(getattr(part, "value", getattr(part, "id", ""))) for part in ast.walk(test)] if test else []
            words += [part.attr for part in ast.walk(test) if isinstance(part, ast.Attribute)] if test else []
            assert not any(re.search(r"\btoy|_toy\b", word) for word in words), (
                f"{path}, line {getattr(test, 'lineno', 0)}: asks for the toy world"
            )


def test_the_ground_floor_is_pure() -> None:
    forbidden = {"diffusers", "transformers", "safetensors", "pyarrow", "yaml", "logging", "os", "pathlib", "io"}
    for path in (one for one in modules("emuedit") if one.is_relative_to(ROOT / "emuedit" / "core")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found = {name.split(".")[0] for name in names} & forbidden
            assert not found, f"{path} imports {found}; core takes tensors and numbers and returns them"


def test_no_machine_no_secret_in_tracked_text() -> None:
    for path in tracked():
        raw = path.read_bytes()
        if b"\0" in raw[:8192] or path == Path(__file__).resolve():
            continue
        text = raw.decode("utf-8", errors="replace")
        for what, law in {"secret": SECRET, "machine path": MACHINE, "private address": ADDRESS}.items():
            found = law.search(text) if path.name != "uv.lock" or what == "secret" else None
            assert not found, f"{path}: {what} {found and found.group()!r}"
        for match in HOSTS.finditer(text):
            assert match.group(2) in {"pypi.org", "files.pythonhosted.org"}, f"{path}: registry {match.group(2)}"


def test_weights_stay_small() -> None:
    weights = [path for path in tracked() if path.suffix in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}]
    assert sum(path.stat().st_size for path in weights) <= 40 * 2**20
    assert {path.suffix for path in weights} <= {".safetensors"}, "want safetensors: the other formats can run code"


def test_lock_is_public() -> None:
    hosts = set(re.findall(r"https?://([\w.-]+)", (ROOT / "uv.lock").read_text()))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
