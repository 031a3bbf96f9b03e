"""A program can tell an instruction to rephrase from another invalid argument, and both from a missing model."""

from pathlib import Path

import numpy as np
import pytest

from emuedit import EditError, Editor, EditSettings, PackageError, RefusedInstructionError
from tests.red_editor import RedSampler, WordPredictor

IMAGE = np.zeros((16, 20, 3), np.uint8)


@pytest.fixture
def editor() -> Editor:
    return Editor(RedSampler(), WordPredictor(), EditSettings(steps=1))  # type: ignore[arg-type]


def test_a_refused_text_has_its_own_error_which_is_an_edit_error(editor: Editor) -> None:
    with pytest.raises(EditError) as error:
        editor.edit(IMAGE, "how is the weather?")
    assert type(error.value) is RefusedInstructionError


@pytest.mark.parametrize(("instruction", "task"), [("", None), ("make it red", "dance")])
def test_other_arguments_are_no_refusals(instruction: str, task: str | None, editor: Editor) -> None:
    with pytest.raises(EditError) as error:
        editor.edit(IMAGE, instruction, task)
    assert type(error.value) is EditError


def test_a_missing_task_predictor_is_no_refusal() -> None:
    with pytest.raises(EditError, match="want a task predictor") as error:
        Editor(RedSampler(), None, EditSettings(steps=1)).choose_tasks(["make it red"])  # type: ignore[arg-type]
    assert type(error.value) is EditError


def test_a_stack_of_images_is_refused_with_the_advice_to_pass_a_list(editor: Editor) -> None:
    with pytest.raises(EditError, match=r"got ndarray uint8 \(2, 16, 20, 3\); pass list\(images\)$"):
        editor.edit(np.stack([IMAGE, IMAGE]), ["make it red", "remove it"], ["local", "remove"])  # type: ignore[call-overload]


def test_a_folder_without_an_editor_is_no_invalid_edit(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as error:
        Editor.load(tmp_path)
    assert not isinstance(error.value, EditError)
