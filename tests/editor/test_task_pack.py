import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.editor import sampling, task_pack
from emuedit.editor.sampling import EditSampler
from emuedit.editor.task_pack import TaskPack, TaskPackError
from tests.editor.tiny_pipelines import is_lock_free

MakeSampler = Callable[..., EditSampler]


def test_a_pack_adds_its_task_to_the_editor_it_was_made_for(make_sampler: MakeSampler, tmp_path: Path) -> None:
    sampler, file = make_sampler(), tmp_path / "contour.safetensors"
    pack = TaskPack("contour", torch.arange(6) / 7, sampler.fingerprint, 8, {"start": "sketch"})
    task_pack.save(pack, file)
    added = sampler.add_pack(file)
    assert vars(added) | {"v": 0} == vars(pack) | {"v": 0}
    assert sampler.tasks[-1] == "contour"
    assert sampler.inverted_tasks == ("contour",)
    assert torch.equal(sampler.net.table.rows(["contour"])[0], pack.v)


def test_the_fingerprint_of_the_editor_has_its_stored_name(tmp_path: Path) -> None:
    """Packs of earlier versions stay readable, and earlier versions read new ones."""
    from safetensors import safe_open

    task_pack.save(TaskPack("contour", torch.zeros(6), "ab" * 8, 8, {}), tmp_path / "contour.safetensors")
    with safe_open(tmp_path / "contour.safetensors", framework="pt") as content:
        stored = json.loads(content.metadata()[task_pack.METADATA_KEY])
    assert list(stored) == ["name", "base", "n_examples", "record", "instructions", "change_threshold"]
    assert stored["base"] == task_pack.read_editor_fingerprint(tmp_path / "contour.safetensors") == "ab" * 8


@pytest.mark.slow
def test_a_pack_is_refused_by_an_editor_with_other_weights(make_sampler: MakeSampler, tmp_path: Path) -> None:
    sampler, file = make_sampler(), tmp_path / "contour.safetensors"
    task_pack.save(TaskPack("contour", torch.arange(6) / 7, sampler.fingerprint, 8, {}), file)
    with torch.no_grad():
        sampler.net.unet.conv_in.bias += 1
    sampler.save(tmp_path / "other")
    other = sampling.load(tmp_path / "other")
    with pytest.raises(TaskPackError, match="an embedding works only with its own network"):
        other.add_pack(file)
    assert other.inverted_tasks == ()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a\x1b[2J", "Contour", "a" * 65, "", 3, None])
def test_a_pack_whose_name_is_no_name_of_a_task_is_refused(name: Any, make_sampler: MakeSampler, tmp_path: Path) -> None:
    """Its name becomes the name of a file, and it was made by others."""
    (folder := tmp_path / "a/b").mkdir(parents=True)
    sampler, file = make_sampler(), folder / "pack.safetensors"
    task_pack.save(TaskPack(name, torch.arange(6) / 7, sampler.fingerprint, 8, {}), file)
    with pytest.raises(TaskPackError, match=r"is not a task pack \(want a name of at most 64 lower-case letters") as caught:
        sampler.add_pack(file)
    assert str(caught.value).isprintable()
    assert sampler.inverted_tasks == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"instructions": "draw it"}, {"instructions": (3,)}, {"instructions": None}, {"change_threshold": "0.3"}, {"more": 1},
        {"editor_fingerprint": 3}, {"n_examples": "\x1b[2J"}, {"v": torch.zeros(2, 3)}, {"v": torch.full((6,), torch.nan)},
    ],
)  # fmt: skip
def test_a_pack_with_values_of_other_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    pack = TaskPack("contour", torch.zeros(6), "ab" * 8, 8, {})
    vars(pack).update(changes)
    task_pack.save(pack, tmp_path / "contour.safetensors")
    with pytest.raises(TaskPackError, match="is not a task pack"):
        task_pack.load(tmp_path / "contour.safetensors")


def test_a_pack_of_another_width_is_refused_as_a_pack(make_sampler: MakeSampler, tmp_path: Path) -> None:
    sampler, file = make_sampler(), tmp_path / "contour.safetensors"
    task_pack.save(TaskPack("contour", torch.zeros(7), sampler.fingerprint, 8, {}), file)
    with pytest.raises(TaskPackError, match=r"contour.safetensors: want a finite task embedding \[6\], got \(7,\)"):
        sampler.add_pack(file)


def test_a_missing_file_and_a_file_of_another_kind_are_errors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(TaskPackError, match="got no file"):
        task_pack.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no pack")
    with pytest.raises(TaskPackError, match="is not a task pack"):
        task_pack.load(tmp_path / "bad.safetensors")
    save_file({"v": torch.zeros(6)}, tmp_path / "plain.safetensors")
    with pytest.raises(TaskPackError, match="is not a task pack"):
        task_pack.load(tmp_path / "plain.safetensors")


@pytest.mark.slow
def test_tasks_are_added_and_removed_between_the_edits_of_other_threads(
    make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, is_free = make_sampler(), list[bool]()
    table = sampler.net.table
    for name in ("add", "remove"):
        change = getattr(table, name)

        def record(*arguments: object, change: Any = change) -> None:
            is_free.append(is_lock_free(sampler))
            change(*arguments)

        monkeypatch.setattr(table, name, record)
    sampler.add_task("cutout", torch.zeros(table.d_v))
    sampler.remove_task("cutout")
    assert is_free == [False, False]
