from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit import Editor, EditSettings, cli
from emuedit.data import example_folder
from emuedit.data.writable_folder import FolderError
from emuedit.editing import api, learn_task, task_commands
from emuedit.editing.edit_error import EditError
from emuedit.editing.learn_task import LearnError, check_new_name
from emuedit.editor import package_folder, task_pack
from emuedit.editor.sampling import EditSampler
from emuedit.editor.task_pack import TaskPackError


@pytest.mark.parametrize("options", [[], ["--no-flip"]])
def test_without_flips_no_mirrored_copy_is_learned_from_and_the_pack_says_so(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flips: list[bool] = []
    recorded: list[bool] = []

    def encode(sampler: Any, before: Any, after: Any, instructions: Any, rows: Any, flip: bool) -> tuple[None, None]:
        flips.append(flip)
        return None, None

    class Stopped(Exception):  # noqa: N818 - not an error
        pass

    def pack(fingerprint: str, settings: Any, instructions: Any, origin: Any, change_threshold: float) -> None:
        assert change_threshold == 0.3
        recorded.append(origin["settings"]["flip"])
        raise Stopped

    pictures = SimpleNamespace(before=np.zeros(6), after=np.zeros(6))
    sampler = SimpleNamespace(resolution_px=32, grid_px=8, fingerprint="w")
    editor = SimpleNamespace(folder=tmp_path, sampler=sampler, settings=SimpleNamespace(resolution=None), reserved_names=())
    monkeypatch.setattr(api.Editor, "load", lambda model: editor)
    monkeypatch.setattr(package_folder, "editor_folder", lambda folder: folder)
    monkeypatch.setattr(example_folder, "read_examples", lambda folder, texts: [SimpleNamespace(instruction="links")] * 6)
    monkeypatch.setattr(example_folder, "load_pictures", lambda *arguments: pictures)
    monkeypatch.setattr(learn_task, "encode_split", encode)
    monkeypatch.setattr(learn_task, "choose_change_threshold", lambda *arguments, **named: 0.3)
    monkeypatch.setattr(learn_task, "invert", lambda *arguments: SimpleNamespace(pack=pack))
    with pytest.raises(Stopped):
        cli.main(["learn", str(tmp_path), "--name", "cutout", *options])
    assert flips == recorded == [not options]


def test_a_pack_is_written_to_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name in its metadata was a path."""
    monkeypatch.chdir(tmp_path)
    task_pack.save(task_pack.TaskPack("../../elsewhere", torch.zeros(6), "0" * 16, 1, {}), tmp_path / "pack.safetensors")
    sampler: Any = SimpleNamespace(fingerprint="0" * 16, tasks=(), add_task=lambda *_: None)
    sampler.add_pack = lambda file, names=(): EditSampler.add_pack(sampler, file, names)
    with pytest.raises(TaskPackError, match=r"want a name of at most 64 lower-case letters, .* got '\.\./\.\./elsewhere'"):
        task_commands.install(tmp_path / "pack.safetensors", Editor(sampler, None, EditSettings()))
    assert [path.name for path in tmp_path.rglob("*")] == ["pack.safetensors"]


def test_a_wrong_name_is_noticed_before_an_editor_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Editor, "load", lambda *_: pytest.fail("it was loaded"))
    assert cli.main(["learn", str(tmp_path), "--name", "3d_look"]) == 2
    assert "lower-case letters, digits and _, the first a letter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-1"], "emuedit: --steps: Input should be greater than or equal to 0, got -1\n"),
        (["--rank", "-1"], "emuedit: --rank: Input should be greater than or equal to 0, got -1\n"),
        (["--seed", "-1"], "emuedit: --seed: Input should be greater than or equal to 0, got -1\n"),
        (["--instruction", " "], "want an instruction, such as 'make the circle red'; got ["),
        (["--instruction", "x" * 10_001], "want an instruction of at most 10000 characters, got 10001; shorten it"),
    ],
)
def test_a_wrong_option_is_one_line_before_an_editor_is_loaded(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A blank instruction was noticed after the training, when the pack was already there."""
    monkeypatch.setattr(Editor, "load", lambda *_: pytest.fail("it was loaded"))
    for part in ("before", "after"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.png").touch()
    instruction = [] if "--instruction" in options else ["--instruction", "cut it out"]
    assert cli.main(["learn", str(tmp_path), "--name", "cutout", *instruction, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_is_learned_from_an_instruction_that_no_edit_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_folder, "load_pictures", lambda *_: pytest.fail("the images were read"))
    sampler = SimpleNamespace(fingerprint="w")
    editor: Any = SimpleNamespace(reserved_names=(), sampler=sampler)
    examples = [example_folder.ExampleEdit(Path("a.png"), Path("b.png"), text) for text in ("cut it out", " ")]
    with pytest.raises(EditError, match="want an instruction, such as"):
        learn_task.learn(editor, examples, learn_task.settings_for("cutout", 2), tmp_path)


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_learned() -> None:
    editor: Any = SimpleNamespace(reserved_names=())
    settings = learn_task.settings_for("cutout", 6, Path("none"))
    with pytest.raises(FolderError, match=r"want a folder that can be written, got /proc/packs \(in /proc\): "):
        learn_task.learn(editor, [], settings, Path("/proc/packs"))


def test_only_the_name_of_a_pack_that_can_be_removed_is_to_be_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs that come with the editor are in another folder, where `emuedit tasks remove` finds nothing."""
    monkeypatch.chdir(tmp_path)
    packs = [task_pack.TaskPack(name, torch.zeros(6), "0" * 16, 1, {}) for name in ("darken", "contour")]
    task_pack.save(packs[0], tmp_path / "models/packs/darken.safetensors")
    editor: Any = SimpleNamespace(reserved_names=("local", "darken", "contour"))
    advice = {
        "local": "; local comes with the editor, so choose another name$",
        "darken": "; to replace it, run `emuedit tasks remove darken` first, or choose another name$",
        "contour": "; contour comes with the editor, so choose another name$",
    }
    for name in editor.reserved_names:
        with pytest.raises(LearnError, match=f"got '{name}'; the editor has the names local, darken, contour{advice[name]}"):
            check_new_name(name, editor)
    for pack in packs:
        with pytest.raises(TaskPackError, match=f"got '{pack.name}', which the editor already has{advice[pack.name]}"):
            task_pack.check(pack, "0" * 16, editor.reserved_names)
