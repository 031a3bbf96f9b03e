import inspect
import pydoc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import Editor, EditSettings
from emuedit.data import image_io
from emuedit.editing.edit_error import EditError, RefusedInstructionError
from emuedit.editing.edit_turn import TaskChoice
from emuedit.editing.editor_inputs import to_rgb
from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.predictor.task_predictor import TaskPrediction
from tests.red_editor import WordPredictor

SETTINGS = EditSettings(steps=2, image_guidance_scale=1.0, guidance_scale=1.0, change_threshold=0.0, resolution=64, seed=5)


@pytest.fixture(scope="module")
def sampler(editor_folder: Callable[[str], Path]) -> EditSampler:
    """A tiny editor on tensors; not to be changed."""
    return sampling.load(editor_folder("toy"))


@pytest.fixture
def editor(sampler: EditSampler) -> Editor:
    """A tiny editor with a fixed task predictor."""
    return Editor(sampler, WordPredictor("add"), SETTINGS)  # type: ignore[arg-type]


def pixels(height: int = 16, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# Pictures


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16"])
def test_a_pil_image_of_any_mode_gives_a_pil_image(mode: str, editor: Editor) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 20), 257 * 100, np.uint16))
    else:
        image = Image.fromarray(pixels()).convert(mode)
    edited = editor.edit(image, "make it red", "local")
    assert isinstance(edited, Image.Image)
    assert (edited.mode, edited.size) == ("RGB", (20, 16))
    np.testing.assert_array_equal(np.asarray(edited), editor.edit(to_rgb(image), "make it red", "local"))


def test_pictures_are_converted_as_files_are() -> None:
    """Transparency is composited on white, and 16 bits are scaled to 8."""
    clear = Image.new("RGBA", (9, 8), (200, 0, 0, 0))
    assert (to_rgb(clear) == 255).all()
    deep = Image.fromarray(np.full((8, 9), 257 * 100, np.uint16))
    assert (to_rgb(deep) == 100).all()
    assert (to_rgb(Image.new("L", (9, 8), 77)) == 77).all()
    for image in (clear, deep):
        np.testing.assert_array_equal(to_rgb(image), image_io.convert_to_rgb(image).pixels)


def test_an_array_gives_an_array_and_is_not_changed(editor: Editor) -> None:
    picture = pixels()
    before = picture.copy()
    edited = editor.edit(picture, "make it red", "local")
    assert isinstance(edited, np.ndarray)
    assert (edited.shape, edited.dtype) == (picture.shape, np.uint8)
    assert not np.array_equal(edited, picture)
    np.testing.assert_array_equal(picture, before)
    want = editor.sampler.sample(from_uint8(picture), ["make it red"], ["local"], SETTINGS, [SETTINGS.seed]).images
    np.testing.assert_array_equal(edited, to_uint8(want)[0])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((16, 20, 3), np.float32), r"got ndarray float32 \(16, 20, 3\)"),
        (np.zeros((16, 20), np.uint8), r"got ndarray uint8 \(16, 20\)"),
        (np.zeros((16, 20, 4), np.uint8), r"got ndarray uint8 \(16, 20, 4\)"),
        (np.zeros((2, 16, 20, 3), np.uint8), r"got ndarray uint8 \(2, 16, 20, 3\)"),
        (Image.new("F", (20, 16)), "got Image F"),
        (Image.new("I", (20, 16)), "got Image I"),
    ],
)
def test_a_picture_of_another_type_or_shape_is_an_error(picture: Any, message: str, editor: Editor) -> None:
    want = r"want a PIL image of 8 or 16 bits per value, or uint8 \[H, W, 3\]; "
    with pytest.raises(EditError, match=want + message):
        editor.edit(picture, "make it red", "local")
    with pytest.raises(EditError, match=want + message):
        editor.edit_turns(picture, ["make it red"], ["local"])
    with pytest.raises(EditError, match=want + message):
        editor.edit([picture], ["make it red"], ["local"])


@pytest.mark.parametrize("picture", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0, 3), np.uint8), Image.new("RGB", (0, 5))])
def test_an_image_without_pixels_is_an_error(picture: Any, editor: Editor) -> None:
    with pytest.raises(EditError, match="want "):
        editor.edit(picture, "make it red", "local")


def test_a_path_is_not_a_picture(editor: Editor) -> None:
    with pytest.raises(EditError, match=r"got str$"):
        editor.edit(["in.png"], ["make it red"], ["local"])  # type: ignore[type-var]


# Lists


@pytest.mark.slow
def test_a_list_is_edited_in_batches_of_one_size_with_the_seed_of_each_position(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = pixels(16, 20, 1), pixels(24, 20, 2)
    pictures = [Image.fromarray(small), large, pixels(16, 20, 3), Image.fromarray(large)]
    instructions, tasks = ["make it red", "add a star", "draw lines", "remove it"], ["local", "add", "sketch", None]
    calls: list[tuple[Any, ...]] = []
    sample = editor.sampler.sample
    monkeypatch.setattr(editor.sampler, "sample", lambda *arguments: (calls.append(arguments), sample(*arguments))[1])
    edited = editor.edit(pictures, instructions, tasks)
    assert [type(picture) for picture in edited] == [Image.Image, np.ndarray, np.ndarray, Image.Image]
    assert [np.asarray(picture).shape for picture in edited] == [np.asarray(picture).shape for picture in pictures]
    assert [(tuple(images.shape), seeds) for images, _, _, _, seeds, *_ in calls] == [
        ((2, 3, 16, 20), [5, 7]),
        ((2, 3, 24, 20), [6, 8]),
    ]
    assert [given for _, _, given, *_ in calls] == [["local", "sketch"], ["add", "remove"]]
    for row, (picture, instruction) in enumerate(zip(pictures, instructions, strict=True)):
        alone = editor.edit(picture, instruction, tasks[row], SETTINGS.with_changes({"seed": SETTINGS.seed + row}))
        difference = np.abs(np.asarray(alone).astype(int) - np.asarray(edited[row]))
        assert difference.max() <= 1, "only rounding depends on the rest of the batch"


def test_lists_of_unequal_length_are_errors(editor: Editor) -> None:
    pictures = [pixels(), pixels()]
    with pytest.raises(EditError, match=r"one instruction for each of the 2 images, got \['make it red'\]"):
        editor.edit(pictures, ["make it red"])
    with pytest.raises(EditError, match="one instruction for each of the 2 images, got 'make it red'"):
        editor.edit(pictures, "make it red")  # type: ignore[call-overload]
    with pytest.raises(EditError, match=r"want a task for each of the 2 instructions or none; got \['local'\]"):
        editor.edit(pictures, ["make it red", "add a star"], ["local"])
    with pytest.raises(EditError, match=r"want a task for each of the 2 instructions or none; got \['local'\]"):
        editor.edit_turns(pictures[0], ["make it red", "add a star"], ["local"])


# Instructions and tasks


@pytest.mark.parametrize("instruction", ["", "  ", None, ["make it red"]])
def test_an_instruction_must_be_a_text_that_is_not_empty(instruction: Any, editor: Editor) -> None:
    with pytest.raises(EditError, match="want an instruction, such as 'make the circle red'; got "):
        editor.edit(pixels(), instruction, "local")
    with pytest.raises(EditError, match="want an instruction, such as 'make the circle red'; got "):
        editor.edit_turns(pixels(), ["make it red", instruction])


def test_no_instruction_at_all_is_an_error(editor: Editor) -> None:
    with pytest.raises(EditError, match=r"want an instruction, .* got \[\]"):
        editor.edit_turns(pixels(), [])
    with pytest.raises(EditError, match=r"want an instruction, .* got \[\]"):
        editor.edit([], [])


def test_a_single_text_is_not_taken_for_a_list_of_letters(editor: Editor) -> None:
    with pytest.raises(EditError, match="want a list of instructions, got the text 'brighten'; pass a list"):
        editor.edit_turns(pixels(), "brighten")
    with pytest.raises(EditError, match="want a list of instructions, got the text 'brighten'"):
        editor.choose_tasks("brighten")


def test_an_unknown_task_is_an_error_that_lists_the_known_ones(editor: Editor) -> None:
    with pytest.raises(EditError, match=r"want one of the tasks local, remove, .*; got 'dance'"):
        editor.edit(pixels(), "make it red", "dance")


def test_a_given_task_is_taken_and_others_are_predicted(editor: Editor) -> None:
    choices = editor.choose_tasks(["make it red", "remove it", "make it red"], ["sketch", None, None])
    assert choices == [
        TaskChoice("sketch", None),
        TaskChoice("remove", 0.9),
        TaskChoice("local", 0.5, "add", 0.4),
    ]
    assert editor.choose_tasks(["remove it"]) == [TaskChoice("remove", 0.9)]


def test_only_a_task_of_the_editor_is_predicted(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    task_lists: list[Sequence[str] | None] = []

    def predict(texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
        task_lists.append(among)
        return [TaskPrediction("remove", 0.1)]

    monkeypatch.setattr(editor.predictor, "predict", predict)
    assert editor.choose_tasks(["make it red"]) == [TaskChoice("remove", 0.1)]
    assert task_lists == [editor.tasks]


@pytest.mark.filterwarnings("ignore::emuedit.editing.api.TruncatedInstructionWarning")
def test_a_text_that_asks_for_no_edit_is_refused_unless_its_task_is_given(editor: Editor) -> None:
    text = "what is the weather in Paris?"
    expected = r"got 'what is the weather in Paris\?'; the nearest tasks are local \(50%\), add \(40%\).*--task"
    for edit in (editor.edit, lambda picture, words: editor.edit_turns(picture, [words])):
        with pytest.raises(RefusedInstructionError, match=expected):
            edit(pixels(), text)
    assert editor.choose_tasks([text], ["sketch"]) == [TaskChoice("sketch", None)]


@pytest.mark.slow
def test_the_editors_own_settings_apply_where_none_are_given(editor: Editor) -> None:
    picture, other = pixels(), SETTINGS.with_changes({"seed": 6})
    np.testing.assert_array_equal(
        editor.edit(picture, "make it red", "local"), editor.edit(picture, "make it red", "local", SETTINGS)
    )
    assert not np.array_equal(editor.edit(picture, "make it red", "local"), editor.edit(picture, "make it red", "local", other))


# Several turns


@pytest.mark.slow
def test_turns_keep_the_pixels_that_they_do_not_change_bit_for_bit(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is replaced by one that errs by less than the threshold, and changes the upper left corner a lot."""
    picture, encoded = pixels(24, 24), []
    encode = editor.sampler.parts.encode

    def decode(z: torch.Tensor) -> torch.Tensor:
        after = (encoded[-1] + 0.009).clamp(-1, 1)
        after[..., :4, :4] = -encoded[-1][..., :4, :4].sign()
        return after

    monkeypatch.setattr(editor.sampler.parts, "encode", lambda images: (encoded.append(images.clone()), encode(images))[1])
    monkeypatch.setattr(editor.sampler.parts, "decode", decode)
    reported: list[int] = []
    settings = SETTINGS.with_changes({"change_threshold": 0.03, "against_reconstruction": 0})
    turns = editor.edit_turns(picture, ["make it red", "remove it", "add a star"], [None, None, "add"], settings, reported.append)
    assert [turn.instruction for turn in turns] == ["make it red", "remove it", "add a star"]
    assert [turn.choice for turn in turns] == [
        TaskChoice("local", 0.5, "add", 0.4),
        TaskChoice("remove", 0.9),
        TaskChoice("add", None, None),
    ]
    assert reported == [1] * 6
    unchanged = np.ones((24, 24), bool)
    unchanged[:9, :9] = False
    for turn in turns:
        assert turn.pixels.dtype == np.uint8
        np.testing.assert_array_equal(turn.pixels[unchanged], picture[unchanged])
        assert not np.array_equal(turn.pixels[:4, :4], picture[:4, :4])
    loose = editor.edit_turns(picture, ["make it red"], ["local"], SETTINGS)
    assert not np.array_equal(loose[0].pixels[unchanged], picture[unchanged]), "without a threshold the decoder's error stays"


def test_turns_equal_single_edits_one_after_the_other(editor: Editor) -> None:
    picture = pixels()
    first, second = editor.edit_turns(Image.fromarray(picture), ["make it red", "add a star"], ["local", "add"])
    want = editor.edit(picture, "make it red", "local")
    np.testing.assert_array_equal(first.pixels, want)
    again = editor.edit(want, "add a star", "add", SETTINGS.with_changes({"seed": SETTINGS.seed + 1}))
    np.testing.assert_array_equal(second.pixels, again, "between turns pictures are rounded to bytes")


# The public face


def test_help_documents_every_public_method_and_argument() -> None:
    text = pydoc.render_doc(Editor, renderer=pydoc.plaintext)
    public = {name: member for name, member in vars(Editor).items() if not name.startswith("_")}
    assert set(public) == {"load", "tasks", "reserved_names", "edit", "edit_turns", "choose_tasks", "add_pack", "remove_task"}
    for name in public:
        member = inspect.getattr_static(Editor, name)
        function = member.fget if isinstance(member, property) else inspect.unwrap(getattr(Editor, name))
        assert function.__doc__, name
        assert function.__doc__.splitlines()[0] in text, name
    for name in ("load", "edit"):
        function = getattr(Editor, name)
        for argument in set(inspect.signature(function).parameters) - {"self"}:
            assert argument in function.__doc__, f"{name} does not document {argument}"
    assert 'editor.edit(Image.open("in.png"), "make the circle red")' in text


@pytest.mark.slow
def test_the_package_exports_the_editor_without_importing_torch() -> None:
    code = (
        "import sys, emuedit\n"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "assert emuedit.Editor.__module__ == 'emuedit.editing.api'\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    emuedit.Nothing\n"
        "except AttributeError as error:\n    assert 'Nothing' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
