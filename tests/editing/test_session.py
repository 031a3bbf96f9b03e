"""Sessions: history, branches, and files from which every picture can be made again."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import Editor, EditSession, EditSettings, cli
from emuedit.editing.session import NumberFormatWarning, SessionError, hash_pixels
from emuedit.editor.sampling import EditSampler
from tests.red_editor import RedSampler

SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, change_threshold=0.0, resolution=64, seed=5)
TURNS = ["make it red", "add a star", "a ring"]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)


@pytest.fixture
def editor(make_sampler: Callable[..., EditSampler]) -> Editor:
    return Editor(make_sampler(), None, SETTINGS)


@pytest.fixture
def session(editor: Editor, picture: np.ndarray) -> EditSession:
    session = EditSession(editor, picture)
    for instruction in TURNS:
        session.edit(instruction, "local")
    return session


@pytest.mark.slow
def test_turns_are_those_of_edit_turns(session: EditSession, editor: Editor, picture: np.ndarray) -> None:
    turns = editor.edit_turns(picture, TURNS, ["local"] * 3)
    for ours, turn in zip(session.turns, turns, strict=True):
        np.testing.assert_array_equal(ours.pixels, turn.pixels)
    assert [turn.settings.seed for turn in session.turns] == [5, 6, 7]


@pytest.mark.slow
def test_undo_and_redo_walk_through_the_history(session: EditSession, picture: np.ndarray) -> None:
    pictures = [picture, *(turn.pixels for turn in session.turns)]
    for expected in reversed(pictures[:-1]):
        np.testing.assert_array_equal(session.undo(), expected)
    with pytest.raises(SessionError, match="want a turn to undo"):
        session.undo()
    for expected in pictures[1:]:
        np.testing.assert_array_equal(session.redo(), expected)
    with pytest.raises(SessionError, match="want an undone turn"):
        session.redo()


@pytest.mark.slow
def test_a_new_edit_forgets_what_was_undone(session: EditSession) -> None:
    session.undo()
    session.edit("remove it", "remove")
    assert [turn.instruction for turn in session.turns] == ["make it red", "add a star", "remove it"]
    with pytest.raises(SessionError):
        session.redo()


@pytest.mark.slow
def test_a_failed_edit_leaves_the_session_as_it_was(session: EditSession) -> None:
    session.undo()
    with pytest.raises(ValueError, match="want one of the tasks"):
        session.edit("fly", "flying")
    assert len(session.turns) == 2
    session.redo()


@pytest.mark.slow
def test_branches_go_their_own_ways(session: EditSession) -> None:
    branch = session.branch()
    branch.undo()
    branch.edit("remove it", "remove")
    assert [turn.instruction for turn in session.turns] == TURNS
    assert branch.turns[-1].instruction == "remove it"
    assert branch.turns[0] is session.turns[0]


@pytest.mark.slow
def test_a_saved_session_makes_the_same_pictures_again(session: EditSession, editor: Editor, tmp_path: Path) -> None:
    session.save(tmp_path / "session.json")
    again = EditSession.replay(editor, session.original, tmp_path / "session.json")
    assert len(again.turns) == 3
    for turn, repeated in zip(session.turns, again.turns, strict=True):
        np.testing.assert_array_equal(turn.pixels, repeated.pixels)


@pytest.mark.slow
def test_turns_made_together_are_made_again_one_by_one(
    make_sampler: Callable[..., EditSampler], picture: np.ndarray, tmp_path: Path
) -> None:
    """Replay begins every turn with the bytes of the picture before it."""
    editor = Editor(make_sampler("sd15"), None, SETTINGS)
    session = EditSession(editor, picture)
    session.extend(TURNS, ["local"] * len(TURNS), SETTINGS)
    session.save(tmp_path / "session.json")
    again = EditSession.replay(editor, picture, tmp_path / "session.json")
    for turn, repeated in zip(session.turns, again.turns, strict=True):
        np.testing.assert_array_equal(turn.pixels, repeated.pixels)


@pytest.mark.slow
def test_another_picture_or_editor_is_refused(session: EditSession, editor: Editor, tmp_path: Path) -> None:
    file = tmp_path / "session.json"
    session.save(file)
    with pytest.raises(SessionError, match=r"want the input image of .*, got another one"):
        EditSession.replay(editor, 255 - session.original, file)
    assert len(EditSession.replay(editor, 255 - session.original, file, any_image=True).turns) == 3
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"editor": "another"}))
    with pytest.raises(SessionError, match="want the editor another that"):
        EditSession.replay(editor, session.original, file)


@pytest.mark.slow
def test_a_task_that_was_learned_again_is_refused(editor: Editor, picture: np.ndarray, tmp_path: Path) -> None:
    """Its name is the same, and so is the editor, but the images would be others."""
    file, table = tmp_path / "session.json", editor.sampler.net.table
    editor.sampler.add_task("cutout", torch.ones(table.d_v))
    session = EditSession(editor, picture)
    session.edit("cut it out", "cutout")
    session.save(file)
    assert len(EditSession.replay(editor, picture, file).turns) == 1
    editor.sampler.remove_task("cutout")
    editor.sampler.add_task("cutout", torch.zeros(table.d_v))
    with pytest.raises(SessionError, match="want the pack of the task 'cutout' that"):
        EditSession.replay(editor, picture, file)


@pytest.mark.slow
def test_a_session_has_the_packs_with_which_its_turns_were_made(editor: Editor, picture: np.ndarray, tmp_path: Path) -> None:
    file, d_v = tmp_path / "session.json", editor.sampler.net.table.d_v
    editor.sampler.add_task("cutout", torch.ones(d_v))
    session = EditSession(editor, picture)
    session.edit("cut it out", "cutout")
    session.save(file)
    content = file.read_text()
    editor.sampler.remove_task("cutout")
    session.save(file)
    assert file.read_text() == content, "whether or not the editor still has the pack"
    editor.sampler.add_task("cutout", torch.zeros(d_v))
    session.save(file)
    assert file.read_text() == content, "and not of the pack that the editor has now"
    session.edit("cut it out", "cutout")
    with pytest.raises(SessionError, match="want one pack per task in a session file, got turns of the task 'cutout' with two"):
        session.save(file)
    session.undo()
    session.save(file)
    assert file.read_text() == content


@pytest.mark.slow
def test_a_task_with_another_threshold_is_refused(editor: Editor, picture: np.ndarray, tmp_path: Path) -> None:
    file, v = tmp_path / "session.json", torch.ones(editor.sampler.net.table.d_v)
    editor.sampler.add_task("cutout", v)
    session = EditSession(editor, picture)
    session.edit("cut it out", "cutout")
    session.save(file)
    editor.sampler.remove_task("cutout")
    editor.sampler.add_task("cutout", v, change_threshold=0.2)
    with pytest.raises(SessionError, match="want the pack of the task 'cutout' that"):
        EditSession.replay(editor, picture, file)
    content = json.loads(file.read_text())
    del content["dtype"]
    file.write_text(json.dumps(content))
    assert len(EditSession.replay(editor, picture, file).turns) == 1, "files of earlier versions have the pack without it"


@pytest.mark.slow
def test_another_number_format_is_a_warning(
    session: EditSession, make_sampler: Callable[..., EditSampler], tmp_path: Path
) -> None:
    file = tmp_path / "session.json"
    session.save(file)
    other = Editor(make_sampler(dtype="bfloat16"), None, SETTINGS)
    with pytest.warns(NumberFormatWarning, match=r"want the number format float32 that .*, got bfloat16, .* dtype='float32'"):
        assert len(EditSession.replay(other, session.original, file).turns) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EditSession.replay(session.editor, session.original, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"settings": None}, {"settings": []}, {"instruction": 5}, {"task": None}],
    ids=["null", "list", "number", "no task"],
)
def test_a_turn_with_values_of_other_types_is_refused(
    change: dict[str, Any], session: EditSession, editor: Editor, tmp_path: Path
) -> None:
    file = tmp_path / "session.json"
    session.save(file)
    content = json.loads(file.read_text())
    content["turns"][0] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(SessionError, match="want a turn with two texts and a mapping of settings, got "):
        EditSession.replay(editor, session.original, file)


@pytest.mark.slow
def test_a_turn_without_a_setting_is_refused_since_its_default_may_be_another(
    session: EditSession, editor: Editor, tmp_path: Path
) -> None:
    file = tmp_path / "session.json"
    session.save(file)
    content = json.loads(file.read_text())
    del content["turns"][1]["settings"]["border_px"]
    file.write_text(json.dumps(content))
    with pytest.raises(SessionError, match="want all settings in each turn, got none of border_px in "):
        EditSession.replay(editor, session.original, file)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9, "picture": "", "editor": "", "turns": []}'])
def test_a_file_that_is_no_session_is_refused(text: str, editor: Editor, picture: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(SessionError, match="want a session file"):
        EditSession.replay(editor, picture, tmp_path / "session.json")


@pytest.mark.slow
@pytest.mark.parametrize("turns", [{}, "none", [1], [{"instruction": "make it red"}], [{"instruction": "x", "task": "local"}]])
def test_turns_that_miss_something_are_refused(turns: Any, session: EditSession, editor: Editor, tmp_path: Path) -> None:
    file = tmp_path / "session.json"
    session.save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"turns": turns}))
    with pytest.raises(SessionError, match="want a list of turns with instruction, settings, task each"):
        EditSession.replay(editor, session.original, file)


@pytest.mark.slow
def test_a_turn_says_how_much_it_changed(session: EditSession) -> None:
    changed = session.turns[0].changed
    assert 0 < changed.share <= 1
    assert changed.box is not None
    assert "of the pixels changed" in str(changed)


@pytest.mark.slow
def test_a_session_is_shown_as_a_sheet_and_as_an_animation(session: EditSession, tmp_path: Path) -> None:
    sheet = session.contact_sheet()
    assert sheet.width > 4 * 128
    session.save_animation(tmp_path / "session.gif", seconds=0.5)
    with Image.open(tmp_path / "session.gif") as animation:
        assert animation.n_frames == 4
        assert animation.info["duration"] == 500


def test_the_command_prints_the_warning_of_another_number_format(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler, image, file = RedSampler(), tmp_path / "in.png", tmp_path / "session.json"
    editor = Editor(sampler, None, SETTINGS)  # type: ignore[arg-type]
    Image.fromarray(picture).save(image)
    session = EditSession(editor, picture)
    session.edit("make it red", "local")
    session.save(file)
    monkeypatch.setattr(Editor, "load", lambda source: editor)
    for dtype, is_warned in ((torch.float32, False), (torch.bfloat16, True)):
        sampler.dtype = dtype
        assert cli.main(["replay", str(file), str(image)]) == 0
        assert ("emuedit: want the number format float32 that" in capsys.readouterr().err) == is_warned


def test_pictures_of_other_sizes_have_other_hashes(picture: np.ndarray) -> None:
    assert hash_pixels(picture) != hash_pixels(picture.reshape(20, 16, 3))
