"""A measurement or an evaluation is used again for the same conditions and files of the package, and for no others."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emuedit.data.image_io import Pixels
from emuedit.editor.settings import EditSettings
from emuedit.metrics.systems import Systems
from emuedit.promotion import comparison
from tests.promotion.test_comparison_parts import CONDITIONS, ExactEdits, load_source, publish_evaluation

OTHER_CONDITIONS = {"benchmark": "other", "n_edits": 6, "split": "train", "dtype": "bfloat16", "settings": EditSettings(steps=9)}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {evaluation: {deps: [judge.py]}}\n")
    (tmp_path / "judge.py").write_text("1")
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The packages whose edits were made, one entry for each measurement of the random images."""
    packages: list[Path] = []

    def emuedit(self: Systems, edits: ExactEdits, seeds: list[int]) -> tuple[Pixels, list[str]]:
        packages.append(self.package)
        return edits.before, [edits.task] * len(seeds)

    monkeypatch.setattr(Systems, "emuedit", emuedit)
    load_source(ExactEdits, monkeypatch)
    return packages


@pytest.mark.parametrize(("name", "value"), OTHER_CONDITIONS.items())
def test_each_condition_changes_the_key(name: str, value: Any, workspace: Path) -> None:
    key = CONDITIONS.key(workspace)
    assert replace(CONDITIONS, settings=EditSettings()).key(workspace) == key
    assert replace(CONDITIONS, **{name: value}).key(workspace) != key


@pytest.mark.parametrize(("name", "value"), [("", None), *OTHER_CONDITIONS.items()])
def test_only_an_evaluation_under_the_same_conditions_replaces_a_measurement(
    name: str, value: Any, workspace: Path, measured: list[Path]
) -> None:
    (workspace / "models/editor").mkdir(parents=True)
    (workspace / "models/editor/weights.safetensors").write_text("new")
    params = {name: value.model_dump(mode="json") if name == "settings" else value} if name else {}
    publish_evaluation(workspace, **params)
    measured.clear()
    comparison.measure(workspace / "models", "new", CONDITIONS, workspace)
    assert len(measured) == len(params)


@pytest.mark.parametrize(
    ("name", "n_measured"),
    [
        ("editor/weights.safetensors", 2),
        ("router/weights.safetensors", 2),
        ("inversion/contour.safetensors", 2),
        ("router/out_of_fold.parquet", 1),
        ("editor/replay/pairs/shard-00000.parquet", 1),
    ],
)
def test_a_package_is_measured_again_if_a_file_changes_on_which_edits_depend(
    name: str, n_measured: int, workspace: Path, measured: list[Path]
) -> None:
    package = workspace / "champion"
    (package / name).parent.mkdir(parents=True)
    for content in ("old", "new", "new"):
        (package / name).write_text(content)
        comparison.measure(package, "champion", CONDITIONS, workspace)
    assert len(measured) == n_measured


def test_measurements_that_another_process_deletes_at_the_same_time_are_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / str(number) for number in range(comparison._KEPT_MEASUREMENTS + 2)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "deleted").symlink_to("nowhere")  # has no time of change, as a folder that was deleted since it was listed
    delete = shutil.rmtree

    def delete_twice(folder: Path, **options: Any) -> None:
        delete(folder)
        delete(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", delete_twice)
    comparison._prune(tmp_path, folders[-1])
    assert [folder for folder in folders if folder.exists()] == folders[2:]
