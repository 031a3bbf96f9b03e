"""`dvc.yaml`, `params.yaml` and the stages agree with each other and with the code."""

import ast
import re
from pathlib import Path

import pytest

from emuedit.config import Params
from tests.repository import (
    PARAMS,
    ROOT,
    STAGES,
    code_of_stage,
    deps,
    has_code,
    module_file,
    module_name,
    python_files,
    world_references,
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_module_and_a_section_of_one_name(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m emuedit.stages.{stage}"
    assert module_file(f"emuedit.stages.{stage}").exists()
    assert stage in PARAMS, f"want section {stage} in params.yaml"
    assert stage in STAGES[stage]["params"], f"want the section {stage} under params of stage {stage} in dvc.yaml"


def test_no_section_and_no_module_without_a_stage() -> None:
    assert set(PARAMS) - {"world", "promotion", "ledger"} == set(STAGES)
    assert {path.stem for path in (ROOT / "emuedit/stages").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_interface(stage: str) -> None:
    source = module_file(f"emuedit.stages.{stage}").read_text()
    assert re.search(rf"^class {stage.title()}Params\([\w.]+\):", source, re.MULTILINE)
    assert re.search(rf"^def run\(params: {stage.title()}Params, root: Path\) -> Summary", source, re.MULTILINE)
    assert re.search(r"^HEADLINE = ", source, re.MULTILINE)
    assert source.endswith(f'if __name__ == "__main__":\n    stage_main("{stage}")\n')


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_the_code_that_a_stage_imports(stage: str) -> None:
    """Also the code that its world names: change a file and DVC must run the stage again."""
    listed = {file for dep in deps(stage) for file in (dep.rglob("*.py") if dep.is_dir() else [dep])}
    missing = {str(path.relative_to(ROOT)) for path in code_of_stage(stage) - listed}
    assert not missing, f"want under deps of {stage} in dvc.yaml: {sorted(missing)}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_no_dep_without_code_that_the_stage_imports(stage: str) -> None:
    code = code_of_stage(stage)
    for dep in deps(stage):
        files = [dep] if dep.suffix == ".py" else [path for path in dep.rglob("*.py") if has_code(path)] if dep.is_dir() else []
        assert not files or code & set(files), f"{stage} imports nothing of its dep {dep.relative_to(ROOT)}"


@pytest.mark.parametrize("stage", STAGES)
def test_model_folders_are_deps(stage: str) -> None:
    """A model that is a folder here may change under its name; a hub id cannot be a dep."""
    folders = {ROOT / reference for reference in world_references(stage) if (ROOT / reference).is_dir()}
    assert folders <= set(deps(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_python_files_that_the_world_names_are_deps_by_reference(stage: str) -> None:
    """A user's own benchmark or annotators must count as much as those of the toy world."""
    names = [name.removeprefix("world.") for name in STAGES[stage]["params"] if name.startswith("world.")]
    references = {f"${{world.{name}}}" for name in names if PARAMS["world"][name].endswith(".py")}
    assert references <= set(STAGES[stage]["deps"])


@pytest.mark.parametrize("stage", ["dataset", "validation", "train"])
def test_mixed_folders_are_deps(stage: str) -> None:
    """DVC cannot make deps of a list: imported pairs are named in params.yaml and in dvc.yaml."""
    assert {ROOT / folder for folder in PARAMS["dataset"].get("mix", [])} <= set(deps(stage))


def test_stages_are_listed_after_what_they_depend_on() -> None:
    outs = {out for stage in STAGES.values() for out in stage["outs"]}
    earlier: set[str] = set()
    for name, stage in STAGES.items():
        late = {out for out in outs - earlier for dep in stage["deps"] if Path(dep).is_relative_to(out)}
        assert not late, f"stage {name} needs {late}, made further down in dvc.yaml"
        earlier |= set(stage["outs"])


@pytest.mark.parametrize("name", ["dvc.yaml", "params.yaml"])
def test_the_file_stays_short(name: str) -> None:
    n_lines = len((ROOT / name).read_text().splitlines())
    assert n_lines <= 125, f"{name} has {n_lines} lines, want at most 125; a param may stay at its default, out of the file"


@pytest.mark.slow
def test_flows_name_no_stage() -> None:
    for path in python_files("flows"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & set(STAGES), f"{path.name} names {words & set(STAGES)}; read the stages from dvc.yaml"


def test_every_param_is_described() -> None:
    for path in python_files("emuedit"):
        if "Params)" in path.read_text() and path.name != "config.py":
            __import__(module_name(path))

    def check(model: type[Params]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"want a docstring below {model.__module__}.{model.__name__}.{name}"
        for subclass in model.__subclasses__():
            if subclass.__module__.startswith("emuedit."):
                check(subclass)

    check(Params)
