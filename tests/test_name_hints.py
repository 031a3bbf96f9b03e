"""Every name of an earlier version fails, and the message says what the thing is called now."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import config
from emuedit.config import ParamsError, import_function, load, resolve_path
from emuedit.editor.settings import EditSettings, SettingsError
from emuedit.models.llm_loading import load_llm
from emuedit.name_hints import RENAMED, RenamedOptionError, check_options, closest_match, new_name
from emuedit.stages import captions
from emuedit.stages.captions import CaptionsError, CaptionsParams
from tests.stages.workspace import toy_world

ROOT = Path(__file__).parents[1]
STAGES = tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
PARAMS = {old: new for old, new in RENAMED.items() if old.split(".")[0] in ("world", *STAGES)}
OPTIONS = {old: new for old, new in RENAMED.items() if old.startswith("--")}
FILES = {old: new for old, new in RENAMED.items() if "/" in old}
FACTORIES = {old: new for old, new in RENAMED.items() if ":" in old}
COMMANDS = {old: new for old, new in RENAMED.items() if old.startswith("emuedit.") and old not in FACTORIES}
SETTINGS = {old: new for old, new in RENAMED.items() if old.isidentifier()}


def test_every_renamed_thing_is_tested_here() -> None:
    groups = (PARAMS, OPTIONS, FILES, FACTORIES, COMMANDS, SETTINGS)
    assert sorted(old for group in groups for old in group) == sorted(RENAMED)
    assert all(groups)


def params_model(section: str) -> type[config.Params]:
    if section == "world":
        return config.World
    model: type[config.Params] = getattr(importlib.import_module(f"emuedit.stages.{section}"), f"{section.title()}Params")
    return model


def insert(values: dict[str, Any], keys: list[str]) -> None:
    """Set the param at the end of this path; of recipes, in the first one of `default`."""
    *parents, last = keys
    for parent in parents:
        if parent == "recipes":
            values = values["recipes"]["default"][0]
        elif parent == "strategy":
            values[parent] = {"kind": "bandit", "per_instruction": 1, "shards_per_round": 1, "sizes": [0.1]}
            values = values[parent]
        else:
            values = values.setdefault(parent, {})
    values[last] = 1


@pytest.mark.parametrize("old", PARAMS)
def test_a_renamed_param_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    section, *keys = old.split(".")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    insert(content[section], keys)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as error:
        load(params_model(section), section, tmp_path / "params.yaml")
    hints = [line for line in str(error.value).splitlines() if f"is now called '{RENAMED[old]}'; rename it" in line]
    assert len(hints) == 1
    assert hints[0].partition("'")[2].partition("'")[0].endswith(keys[-1])


@pytest.mark.parametrize("old", [old for old in PARAMS if old.startswith("world.")])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if "world" in params_model(stage).model_fields])
def test_a_renamed_part_of_the_world_is_named_in_every_stage(stage: str, old: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["world"][old.removeprefix("world.")] = content["world"].pop(RENAMED[old].removeprefix("world."))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=f"'{old}' is now called '{RENAMED[old]}'; rename it"):
        load(params_model(stage), stage, tmp_path / "params.yaml")


@pytest.mark.parametrize("new", PARAMS.values())
def test_the_new_name_of_a_param_exists(new: str) -> None:
    section, *parents, last = new.split(".")
    _, fields = config._fields_at(params_model(section), parents)
    assert last in fields


@pytest.mark.parametrize("old", COMMANDS)
def test_a_renamed_command_is_refused_with_its_new_name(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"^{old} is now {RENAMED[old]}$"):
        importlib.import_module(old)
    assert importlib.util.find_spec(RENAMED[old]) is not None


def test_other_missing_modules_fail_as_usual() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'emuedit\.nowhere'"):
        importlib.import_module("emuedit.nowhere")
    with pytest.raises(ImportError, match="cannot import name 'nowhere' from 'emuedit'"):
        exec("from emuedit import nowhere")


def test_running_a_renamed_command_names_its_new_place_in_one_line() -> None:
    old, new = "emuedit.pairs", "emuedit.stages.pairs"
    process = subprocess.run([sys.executable, "-m", old], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.endswith(f" is now {new})")


@pytest.mark.parametrize("old", FILES)
def test_a_renamed_file_or_folder_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    hint = f"; it is now '{RENAMED[old]}'"
    assert (ROOT / RENAMED[old]).exists()
    assert config.renamed_hint(old) == hint
    if old.endswith("grammar.py"):
        params = CaptionsParams.model_validate({"world": toy_world() | {"captions": old}, "n_rows": 1})
        with pytest.raises(CaptionsError, match=hint):
            captions.run(params, tmp_path)
    elif old.endswith(".py"):
        with pytest.raises(ParamsError, match=hint):
            import_function(old, "annotate")
    elif "weights" in old:
        with pytest.raises(ParamsError, match=hint):
            resolve_path(old, ROOT)


@pytest.mark.parametrize("old", FACTORIES)
def test_a_renamed_factory_is_refused_with_its_new_name(old: str) -> None:
    with pytest.raises(ValueError, match=f"; it is now '{RENAMED[old]}'"):
        load_llm(old)
    assert load_llm(RENAMED[old])


@pytest.mark.parametrize("old", OPTIONS)
def test_a_renamed_option_is_refused_with_its_new_name(old: str) -> None:
    for arguments in ([old, "1"], [f"{old}=1"]):
        with pytest.raises(RenamedOptionError, match=f"^{old} is now {RENAMED[old]}$"):
            check_options(["edit", "in.png", *arguments])
    check_options([RENAMED[old], "1"])


@pytest.mark.parametrize("old", SETTINGS)
def test_a_renamed_setting_is_refused_with_its_new_name(old: str) -> None:
    with pytest.raises(SettingsError, match=f"got '{old}'; it is now '{RENAMED[old]}'"):
        EditSettings().with_changes({old: 1.0})
    assert RENAMED[old] in EditSettings.model_fields


def test_names_that_were_never_used_have_no_new_name_but_perhaps_a_neighbour() -> None:
    assert new_name("pairs.nothing") is None
    assert closest_match("guidanse_scale", EditSettings.model_fields) == "; did you mean 'guidance_scale'?"
    assert closest_match("xyz", EditSettings.model_fields) == ""
