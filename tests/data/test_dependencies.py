"""The keys of scratch folders change exactly when DVC would run a stage again: with any of its deps, and with no other file."""

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from emuedit import config
from emuedit.config import ParamsError
from emuedit.data.dependencies import content_key, files_below, find_file, stage_dependencies, work_key
from emuedit.data.file_hashes import hash_file

ROOT = Path(__file__).parents[2]
WORLD: dict[str, str] = yaml.safe_load((ROOT / "params.yaml").read_text())["world"]
PIPELINE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = tuple(PIPELINE)
PRODUCED = {out for stage in PIPELINE.values() for out in stage["outs"]}


def fill_in(dep: str) -> str:
    """A dep of dvc.yaml with the names of params.yaml."""
    return re.sub(r"\$\{world\.(\w+)\}", lambda match: WORLD[match[1]], dep)


DEPS = {stage: [fill_in(dep) for dep in PIPELINE[stage]["deps"]] for stage in STAGES}
ALL_DEPS = sorted({dep for deps in DEPS.values() for dep in deps})
DATA_DEPS = [dep for dep in ALL_DEPS if {dep, *map(str, Path(dep).parents)} & set(PRODUCED)]
CODE_DEPS = [dep for dep in ALL_DEPS if dep not in DATA_DEPS]


def files_of(dep: str) -> list[str]:
    """Stand-ins of a dep: the file itself, or two files of the folder."""
    return [dep] if "." in Path(dep).name else [f"{dep}/first.py", f"{dep}/folder/second.py"]


CODE_FILES = sorted({file for dep in CODE_DEPS for file in files_of(dep)})


def stages_that_depend_on(file: str) -> set[str]:
    """Stages with a dep that is this file, or a folder that it lies in."""
    return {stage for stage, deps in DEPS.items() if any(file == dep or file.startswith(f"{dep}/") for dep in deps)}


@cache
def parse_yaml(content: bytes) -> Any:
    """Parsed once: the tests compute thousands of keys."""
    return yaml.safe_load(content)


@pytest.fixture
def fast_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "read_yaml", lambda path: parse_yaml(path.read_bytes()))


def make_tree(root: Path) -> Path:
    """A small copy of the project: the real dvc.yaml and params.yaml, and a stand-in for every dep."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root)
    for file in CODE_FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(f"# {file}\n")
    for folder in DATA_DEPS:
        (root / folder).mkdir(parents=True)
        (root / folder / "shard-00000.parquet").write_bytes(b"rows")
        (root / folder / "summary.json").write_text(f'{{"stage": "{folder}"}}\n')
    return root


@pytest.fixture
def tree(tmp_path: Path, fast_yaml: None) -> Path:
    """A copy of the project that the test may change."""
    return make_tree(tmp_path)


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the project that a test leaves as it was, and the keys of its stages."""
    root = make_tree(tmp_path_factory.mktemp("tree"))
    return root, work_keys(root)


def work_keys(root: Path) -> dict[str, str]:
    return {stage: work_key(stage, {"n": 1}, root) for stage in STAGES}


def changed_stages(root: Path, change: Callable[[], object]) -> set[str]:
    return changed_by_each(root, change)[0]


def changed_by_each(root: Path, *changes: Callable[[], object], keys_before: dict[str, str] | None = None) -> list[set[str]]:
    """For each change, one after the other, the stages whose keys it changes. keys_before: those of the tree, where known."""
    keys = [keys_before or work_keys(root)]
    for change in changes:
        change()
        keys.append(work_keys(root))
    return [{stage for stage in STAGES if before[stage] != after[stage]} for before, after in pairwise(keys)]


def test_the_pipeline_lists_code_and_data_for_every_stage() -> None:
    for stage in STAGES:
        code = [dep for dep in DEPS[stage] if dep in CODE_DEPS]
        assert f"emuedit/stages/{stage}.py" in code
        assert all((ROOT / dep).exists() for dep in code)
    assert len(CODE_FILES) > 40
    assert len(DATA_DEPS) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("file", CODE_FILES)
def test_a_changed_code_file_changes_the_keys_of_the_stages_that_depend_on_it_and_no_others(
    file: str, shared_tree: tuple[Path, dict[str, str]], fast_yaml: None
) -> None:
    expected = stages_that_depend_on(file)
    assert expected
    root, before = shared_tree
    content = (root / file).read_bytes()
    (root / file).write_text("# changed\n")
    after = work_keys(root)
    (root / file).write_bytes(content)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == expected


@pytest.mark.slow
@pytest.mark.parametrize("folder", [dep for dep in CODE_DEPS if files_of(dep) != [dep]])
def test_a_new_and_a_deleted_file_of_a_code_folder_change_the_same_keys(
    folder: str, shared_tree: tuple[Path, dict[str, str]], fast_yaml: None
) -> None:
    expected = stages_that_depend_on(f"{folder}/new.py")
    root, before = shared_tree
    new, other = (root / folder / name for name in ("new.py", "other.py"))
    changes = (new.touch, lambda: new.rename(other), other.unlink)  # the last one leaves the tree as it was
    assert changed_by_each(root, *changes, keys_before=before) == [expected] * 3


@pytest.mark.slow
@pytest.mark.parametrize("folder", DATA_DEPS)
def test_changed_data_change_the_keys_of_the_stages_that_read_them_and_no_others(folder: str, tree: Path) -> None:
    expected = {stage for stage in STAGES if folder in DEPS[stage]}
    assert expected
    summary = tree / folder / "summary.json"
    assert changed_by_each(tree, lambda: summary.write_text("{}\n"), lambda: shutil.rmtree(tree / folder)) == [expected] * 2


@pytest.mark.slow
def test_the_output_of_a_stage_counts_by_its_summary_which_lists_the_hashes_of_its_files(tree: Path) -> None:
    folder = tree / "data/pairs"
    shard, readers = folder / "shard-00000.parquet", {stage for stage in STAGES if "data/pairs" in DEPS[stage]}
    changes = (
        lambda: shard.write_bytes(b"other rows"),
        (folder / "summary.json").unlink,
        lambda: shard.write_bytes(b"rows again"),
    )
    assert changed_by_each(tree, *changes) == [set(), readers, readers]


@pytest.mark.slow
def test_a_folder_that_no_stage_writes_counts_by_its_files_even_if_it_has_a_summary(tree: Path) -> None:
    """The weights of a base editor were replaced, and its summary was not."""
    folder = tree / "toyworld/weights/base_editor"
    (folder / "summary.json").write_text("{}\n")
    assert changed_stages(tree, lambda: (folder / "first.py").write_text("other weights\n")) == {"train"}
    model = tree / "my-model"
    model.mkdir()
    for file in ("weights.safetensors", "summary.json"):
        (model / file).write_text(file)
    before = work_key("pairs", {}, tree, str(model))
    (model / "weights.safetensors").write_text("other weights")
    assert work_key("pairs", {}, tree, str(model)) != before


@pytest.mark.slow
def test_what_is_no_dep_changes_no_key(tree: Path) -> None:
    def add_unrelated_files() -> None:
        for name in ("README.md", "notes.py", "emuedit/cli.py", "emuedit/unrelated/new.py", "flows/pipeline.py"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("new\n")
        for folder in [dep for dep in CODE_DEPS if files_of(dep) != [dep]]:
            (tree / folder / "__pycache__").mkdir()
            (tree / folder / "__pycache__" / "first.cpython-311.pyc").write_bytes(b"compiled")

    assert not changed_stages(tree, add_unrelated_files)
    assert not changed_stages(tree, lambda: [(tree / file).touch() for file in CODE_FILES]), "only the content counts"


def test_params_and_models_change_the_key(tree: Path) -> None:
    model = tree / "my-model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"weights")
    key = work_key("pairs", {"n": 1}, tree)
    assert work_key("pairs", {"n": 1}, tree) == key != work_key("pairs", {"n": 2}, tree)
    with_model = work_key("pairs", {"n": 1}, tree, str(model))
    assert with_model != key
    assert work_key("pairs", {"n": 1}, tree, "owner/model-on-the-hub") == key, "a hub id is part of the params"
    (model / "weights.safetensors").write_bytes(b"other weights")
    assert work_key("pairs", {"n": 1}, tree, str(model)) not in (with_model, key)
    weights = str(tree / "toyworld/weights/base_model")
    assert work_key("pairs", {"n": 1}, tree, weights) == key, "a model that is a dep anyway counts once"


@pytest.mark.slow
def test_a_param_in_a_dep_is_filled_in(tree: Path) -> None:
    (tree / "mine.txt").write_text("a caption\n")
    content = yaml.safe_load((tree / "params.yaml").read_text())
    content["world"]["captions"] = "mine.txt"
    (tree / "params.yaml").write_text(yaml.safe_dump(content))
    assert tree / "mine.txt" in stage_dependencies("captions", tree)
    assert changed_stages(tree, lambda: (tree / "mine.txt").write_text("another caption\n")) == {"captions"}


def test_a_workspace_without_code_uses_the_code_beside_the_package(tmp_path: Path) -> None:
    paths = stage_dependencies("train", tmp_path)
    assert ROOT / "emuedit/training" in paths
    assert tmp_path / "data/pairs" in paths, "data are never those of another folder"
    assert find_file("emuedit/training", tmp_path) == ROOT / "emuedit/training"
    (tmp_path / "emuedit/training").mkdir(parents=True)
    assert find_file("emuedit/training", tmp_path) == tmp_path / "emuedit/training"
    assert find_file("nowhere", tmp_path) == tmp_path / "nowhere"


def test_outs_of_stages_are_never_those_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were if a retrain had run there: this test of a new clone failed after the README's first command."""
    code, workspace = tmp_path / "code", tmp_path / "workspace"
    (code / "data/pairs").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, code)
    monkeypatch.setattr("emuedit.data.dependencies.CODE_ROOT", code)
    assert workspace / "data/pairs" in stage_dependencies("train", workspace)


def test_an_unknown_stage_is_named_with_those_that_exist(tree: Path) -> None:
    with pytest.raises(ParamsError, match=r"want stage 'painting' in dvc.yaml, got captions, instructions, pairs"):
        work_key("painting", {}, tree)


def test_the_hash_of_a_file_follows_its_content(tmp_path: Path) -> None:
    file = tmp_path / "f"
    assert hash_file(file) == "missing"
    file.write_text("a")
    first = hash_file(file)
    file.write_text("bb")
    assert hash_file(file) != first
    file.write_text("a")
    assert hash_file(file) == first
    assert content_key({"n": 1}, file) != content_key({"n": 2}, file)


def test_linked_folders_of_a_model_are_part_of_its_content(tmp_path: Path) -> None:
    model, unet = tmp_path / "model", tmp_path / "finetuned" / "unet"
    for file in (model / "model_index.json", unet / "weights", model / "__pycache__" / "x.pyc"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a")
    (model / "unet").symlink_to(unet)
    assert files_below(model) == [model / "model_index.json", model / "unet" / "weights"]
    first = content_key({}, model)
    (unet / "weights").write_text("bb")
    assert content_key({}, model) != first


def test_two_links_to_one_folder_are_two_parts(tmp_path: Path) -> None:
    model, shared = tmp_path / "model", tmp_path / "shared"
    for folder in (model, shared):
        folder.mkdir()
    (shared / "weights").write_text("a")
    (model / "text_encoder").symlink_to(shared)
    first = content_key({}, model)
    (model / "text_encoder_2").symlink_to(shared)
    assert files_below(model) == [model / "text_encoder" / "weights", model / "text_encoder_2" / "weights"]
    assert content_key({}, model) != first


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the key would be that of the other files."""
    (tmp_path / "unet").mkdir()
    read = Path.iterdir

    def fail(folder: Path) -> Iterator[Path]:
        if folder.name == "unet":
            raise OSError(errno.EIO, "Input/output error")
        return read(folder)

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(OSError, match="Input/output"):
        files_below(tmp_path)


def test_folders_that_link_to_each_other_are_read_to_an_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "a" / "parent").symlink_to(tmp_path)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert files_below(tmp_path / "a") == [tmp_path / "a" / "file", tmp_path / "a" / "to_b" / "file"]
