"""The report of an edit: which pixels changed, in Python, in the answer of the registered model and of the pipeline."""

import base64
import io
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emuedit import Editor, EditSession, EditSettings
from emuedit.data import image_io
from emuedit.editing.edit_turn import Turn
from emuedit.editor import changed_area
from emuedit.editor.changed_area import ChangedArea
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import Edited
from emuedit.models.image_tensors import from_uint8
from emuedit.tracking import model_signature

SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, resolution=64)
BOX = ChangedArea(6 / 320, (4, 2, 7, 4))
"""A corner of 2 x 3 px, which `PatchSampler` paints, in an image of 16 x 20 px."""


class PatchSampler:
    """Stands for an editor: inverts 2 x 3 px at row 2, column 4; nothing for the task `remove`."""

    tasks, inverted_tasks, fingerprint = ("local", "remove"), (), "patch"
    resolution_px, grid_px, max_tokens = 64, 4, 40

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def is_truncated(self, instruction: str) -> bool:
        return False

    def sample(self, images: Any, instructions: Any, tasks: Any, *rest: Any) -> Edited:
        edited = images.clone()
        if tasks[0] == "local":
            edited[..., 2:4, 4:7] *= -1
        return Edited(edited, (None,) * len(images))


@pytest.fixture
def editor() -> Editor:
    return Editor(PatchSampler(), None, SETTINGS)  # type: ignore[arg-type]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (16, 20, 3), np.uint8)


def test_a_turn_reports_what_it_changed_itself(editor: Editor, picture: np.ndarray) -> None:
    """The second turn undoes the first, so that the same pixels change again; the third changes nothing."""
    turns = editor.edit_turns(picture, ["a", "b", "c"], ["local", "local", "remove"])
    assert [turn.changed for turn in turns] == [BOX, BOX, ChangedArea(0.0, None)]
    for turn, before in zip(turns, (picture, turns[0].pixels, turns[1].pixels), strict=True):
        np.testing.assert_array_equal(turn.before, before)
        np.testing.assert_array_equal(turn.mask, changed_area.changed_mask(before, turn.pixels))
    assert turns[0].mask.sum() == 6
    assert turns[0].mask[2:4, 4:7].all()


def test_the_images_of_earlier_turns_are_kept_as_bytes_only(editor: Editor, picture: np.ndarray) -> None:
    """As float32 ten turns of 48 megapixels held 5.8 GB."""
    inputs, counts = list[weakref.ref[Any]](), list[int]()
    sample = editor.sampler.sample

    def record(images: Any, *rest: Any) -> Edited:
        inputs.append(weakref.ref(images))
        counts.append(sum(image() is not None for image in inputs))
        return sample(images, *rest)

    editor.sampler.sample = record  # type: ignore[method-assign]
    editor.edit_turns(picture, ["a"] * 6, ["local"] * 6)
    assert max(counts) == 2, "the first image and that of the turn"


def test_the_report_stays_when_the_caller_changes_the_input(editor: Editor, picture: np.ndarray) -> None:
    original = picture.copy()
    session = EditSession(editor, picture)
    (turn,) = editor.edit_turns(picture, ["a"], ["local"])
    picture[:] = 255
    assert turn.mask.sum() == 6
    np.testing.assert_array_equal(session.original, original)


def test_a_session_measures_every_turn_once(editor: Editor, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    measure = changed_area.measure
    monkeypatch.setattr(changed_area, "measure", lambda *pair: (measured.append(pair), measure(*pair))[1])
    session = EditSession(editor, picture)
    turns = session.extend(["a", "b"], ["local", "remove"], SETTINGS)
    assert [turn.changed for turn in turns] == [BOX, ChangedArea(0.0, None)]
    assert len(measured) == 2
    assert turns[0].before is session.original, "without a copy of each image of the session"
    assert turns[1].before is turns[0].pixels


def test_the_images_of_a_session_are_read_only(editor: Editor, picture: np.ndarray) -> None:
    for image in (picture, Image.fromarray(picture)):
        session = EditSession(editor, image)
        turns = session.extend(["a", "b"], ["local", "remove"], SETTINGS)
        images = [
            session.original,
            session.pixels,
            session.undo(),
            *(array for turn in turns for array in (turn.before, turn.pixels)),
        ]
        for array in images:
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
    picture[:] = 0  # the caller's own array


def test_a_seed_that_grows_out_of_bounds_is_an_error_before_the_first_turn(editor: Editor, picture: np.ndarray) -> None:
    session, reported = EditSession(editor, picture), list[int]()
    with pytest.raises(ValueError, match=r"seed: .*less than 9223372036854775808"):
        session.extend(["a", "b"], ["local", "local"], SETTINGS.with_changes({"seed": 2**63 - 1}), reported.append)
    assert not reported
    assert not session.turns


def encoded(pixels: np.ndarray) -> str:
    return base64.b64encode(image_io.to_png(pixels)).decode()


@pytest.fixture
def model(editor: Editor) -> Any:
    from flows import pyfunc_model

    model = pyfunc_model.EditorModel()
    model.editor = editor
    return model


def test_the_registered_model_reports_it_per_row(model: Any, picture: np.ndarray) -> None:
    rows = [{"image": encoded(picture), "instruction": "a", "task": task} for task in ("local", "remove")]
    answer = type(model).predict(model, pd.DataFrame(rows), {})
    assert [*answer.columns] == ["image", "task", "probability", "changed_share", "changed_box"], "the old columns come first"
    assert answer.changed_share.tolist() == [BOX.share, 0.0]
    assert answer.changed_box.tolist() == [list(BOX.box or ()), []]


def test_the_registered_model_adds_the_mask_on_request(model: Any, picture: np.ndarray) -> None:
    frame = pd.DataFrame([{"image": encoded(picture), "instruction": "a", "task": "local"}])
    answer = type(model).predict(model, frame, {"mask": True, "steps": 2})
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"][0]))))
    (turn,) = model.editor.edit_turns(picture, ["a"], ["local"])
    np.testing.assert_array_equal(mask, np.repeat(turn.mask[..., None], 3, -1) * np.uint8(255))
    with pytest.raises(ValueError, match="want true or false for the param mask, got 'yes'"):
        type(model).predict(model, frame, {"mask": "yes"})


def test_the_signature_lists_what_the_model_answers(model: Any, picture: np.ndarray) -> None:
    from mlflow.models.utils import _enforce_params_schema, _enforce_schema

    signature = model_signature.signature(SETTINGS.model_dump())
    frame = pd.DataFrame([{"image": encoded(picture), "instruction": "a", "task": "local"}])
    for request in ({}, {"mask": True}):
        params = _enforce_params_schema(request, signature.params)
        answer = type(model).predict(model, frame, params)
        assert [*_enforce_schema(answer, signature.outputs).columns] == [*answer.columns]
        assert [*answer.columns] == signature.outputs.input_names()[: 5 + len(request)]


@pytest.mark.slow
@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_the_pipeline_reports_it_per_result(output_type: str, editor_folder: Callable[[str], Path], picture: np.ndarray) -> None:
    pipe = EmuEditPipeline.from_pretrained(editor_folder("toy"))
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": 1, "image_guidance_scale": 1.0, "guidance_scale": 1.0, "task": "local"}
    output = pipe("a", [picture, picture[::-1]], num_images_per_prompt=2, output_type=output_type, **arguments)
    results = [np.asarray(image) if output_type == "pil" else (image * 255).round().astype(np.uint8) for image in output.images]
    inputs = [picture, picture, picture[::-1], picture[::-1]]
    assert output.changed == [changed_area.measure(*pair) for pair in zip(inputs, results, strict=True)]
    assert max(area.share for area in output.changed) > 0
    assert len(pipe("a", picture, return_dict=False, **arguments)) == 1


@pytest.mark.slow
def test_a_turn_of_the_real_sampler_leaves_the_rest_alone(make_sampler: Callable[..., EditSampler], picture: np.ndarray) -> None:
    turn: Turn
    (turn,) = Editor(make_sampler(), None, SETTINGS).edit_turns(Image.fromarray(picture), ["a"], ["local"])
    np.testing.assert_array_equal(turn.pixels[~turn.mask], picture[~turn.mask])
    assert turn.changed.share == turn.mask.mean()
    assert from_uint8(turn.pixels).shape == (1, 3, 16, 20)
