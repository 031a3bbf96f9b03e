"""Doors of the registered model: rows as people send them. One line per case."""

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from emuedit.data import budget, image_io
from emuedit.data.budget import Budget
from emuedit.editing.edit_turn import TaskChoice, Turn
from emuedit.editor.changed_area import ChangedArea
from emuedit.editor.settings import EditSettings


class EchoEditor:
    """Returns the picture, and keeps what it was asked for."""

    settings = EditSettings()
    sampler = SimpleNamespace(resolution_px=4, grid_px=4)

    def __init__(self) -> None:
        self.requests: list[tuple[Any, ...]] = []

    def edit_turns(self, pixels: Any, instructions: list[str], tasks: Any, settings: EditSettings, report: Any) -> list[Turn]:
        self.requests.append((instructions, tasks, settings))
        return [Turn(instructions[0], TaskChoice("local", None), pixels, pixels, ChangedArea(0.0, None))]


def encode(kind: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


PICTURE = encode()
WRAPPED = base64.encodebytes(base64.b64decode(PICTURE)).decode()
URL_SAFE = base64.urlsafe_b64encode(base64.b64decode(PICTURE)).decode()

ACCEPTED: dict[str, dict[str, Any]] = {
    "as it is": {"image": PICTURE},
    "wrapped lines, as of base64(1)": {"image": WRAPPED},
    "lines of Windows": {"image": WRAPPED.replace("\n", "\r\n")},
    "a trailing newline": {"image": PICTURE + "\n"},
    "for URLs": {"image": URL_SAFE},
    "without padding": {"image": PICTURE.rstrip("=")},
    "a data URL": {"image": "data:image/png;base64," + PICTURE},
    "a data URL in lines": {"image": " data:image/png;base64,\n" + WRAPPED},
    "a JPEG": {"image": encode("JPEG")},
    "an empty task": {"image": PICTURE, "task": ""},
    "a task that is NaN": {"image": PICTURE, "task": float("nan")},
}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an empty cell of pandas": ({"instruction": float("nan")}, {}, r"row 0: want an instruction, .* got nan"),
    "None": ({"instruction": None}, {}, r"row 0: want an instruction"),
    "an empty instruction": ({"instruction": "  "}, {}, r"row 0: want an instruction"),
    "a text of 10,001 letters": ({"instruction": "x" * 10_001}, {}, r"row 0: want an instruction of at most 10000 .* got 10001"),
    "spaces only, which are not repeated": ({"instruction": " " * 10_001}, {}, r"^row 0: want an instruction.{0,200}$"),
    "more than twice the sides of the editor": ({}, {"resolution": 9}, r"want a resolution of at most 8 .* 16 x 16 .* got 9"),
    "a number": ({"instruction": 5}, {}, r"row 0: want an instruction, .* got 5"),
    "no base64": ({"image": "???"}, {}, r"row 0: want the bytes of an image file in base64"),
    "letters that no base64 has": ({"image": "ä" * 8}, {}, r"row 0: want the bytes of an image file in base64"),
    "a path": ({"image": "/pictures/in.png"}, {}, r"row 0: want"),
    "a picture that is NaN": ({"image": float("nan")}, {}, r"row 0: want the bytes of an image file in base64, got float"),
    "no picture": ({"image": base64.b64encode(b"hello").decode()}, {}, r"row 0: want an image"),
    "half a picture": ({"image": PICTURE[:40]}, {}, r"row 0: (want an image|.* is damaged)"),
    "steps of minus one": ({}, {"steps": -1}, r"steps: .*greater than or equal to 1, got -1"),
    "steps of zero": ({}, {"steps": 0}, r"steps: .*greater than or equal to 1, got 0"),
    "preserve of five": ({}, {"preserve": 5.0}, r"preserve: .*less than or equal to 1"),
    "rescale of minus three": ({}, {"guidance_rescale": -3.0}, r"guidance_rescale: .*greater than or equal to 0"),
    "guidance of NaN": ({}, {"guidance_scale": float("nan")}, r"guidance_scale: "),
    "guidance of infinity": ({}, {"guidance_scale": float("inf")}, r"guidance_scale: "),
    "a setting with a typo": ({}, {"step": 5}, r"got 'step'; did you mean 'steps'"),
    "a setting of an earlier version": ({}, {"s_T": 5.0}, r"it is now 'guidance_scale'"),
}


@pytest.fixture
def model() -> Any:
    from flows import pyfunc_model

    model = pyfunc_model.EditorModel()
    model.editor = EchoEditor()
    return model


def predict(model: Any, row: dict[str, Any], params: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame([{"image": PICTURE, "instruction": "make it red"} | row])
    answer: pd.DataFrame = type(model).predict(model, frame, params)
    return answer


@pytest.mark.parametrize("case", ACCEPTED)
def test_pictures_in_base64_as_people_make_it(case: str, model: Any) -> None:
    answer = predict(model, ACCEPTED[case], {})
    assert Image.open(io.BytesIO(base64.b64decode(answer.image[0]))).size == (16, 16)
    assert model.editor.requests[0][:2] == (["make it red"], None)


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_edited_are_named(case: str, model: Any) -> None:
    row, params, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        predict(model, row, params)
    assert model.editor.requests == []


@pytest.mark.parametrize(("resolution", "side"), [(8, 16), (16_384, 8), (0, 16)])
def test_a_resolution_is_bounded_by_the_pixels_that_are_edited(resolution: int, side: int, model: Any) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    predict(model, {"image": base64.b64encode(stream.getvalue()).decode()}, {"resolution": resolution})
    assert model.editor.requests[0][2].resolution == resolution


def test_the_bound_counts_the_padding_of_a_narrow_image(model: Any) -> None:
    """An image of 8 x 32768 px, of as many pixels as SD1.5 is trained on, is padded to eight times as many."""
    model.editor.sampler = SimpleNamespace(resolution_px=16, grid_px=16)
    stream = io.BytesIO()
    Image.new("RGB", (120, 8)).save(stream, "PNG")
    with pytest.raises(ValueError, match="want a resolution of at most 32 for an image of 120 x 8 pixels, got 33"):
        predict(model, {"image": base64.b64encode(stream.getvalue()).decode()}, {"resolution": 33})


def test_the_resolution_of_the_evaluation_may_exceed_that_of_the_network(model: Any) -> None:
    """Editors of earlier versions record none of their own."""
    model.editor.settings = EditSettings(resolution=8)
    predict(model, {}, {"resolution": 16})
    assert len(model.editor.requests) == 1


def test_missing_columns_are_named(model: Any) -> None:
    with pytest.raises(ValueError, match=r"want columns image, instruction, task .* got \['picture'\]"):
        model.predict(SimpleNamespace(columns=["picture"]))


def test_the_pixels_of_parallel_requests_are_bounded(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow runs each request in a thread; reading, editing and encoding all need memory for the whole image."""
    lock, in_flight, largest = threading.Lock(), [0], [0]
    read_image, to_png = image_io.read_image, image_io.to_png

    def read(content: bytes) -> image_io.LoadedImage:
        with lock:
            in_flight[0] += 256
            largest[0] = max(largest[0], in_flight[0])
        time.sleep(0.01)
        return read_image(content)

    def encode_png(*arguments: Any) -> bytes:
        png = to_png(*arguments)
        with lock:
            in_flight[0] -= 256
        return png

    monkeypatch.setattr(budget, "IN_FLIGHT", Budget(3 * 256 + 100))
    monkeypatch.setattr(image_io, "read_image", read)
    monkeypatch.setattr(image_io, "to_png", encode_png)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: predict(model, {}, {}), range(24)))
    assert [len(answer) for answer in answers] == [1] * 24
    assert largest[0] == 3 * 256
    assert in_flight[0] == 0


def test_a_request_that_fails_leaves_its_pixels_to_others(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "IN_FLIGHT", pixels := Budget(256))
    for row in ({"instruction": ""}, {"image": base64.b64encode(b"hello").decode()}):
        with pytest.raises(ValueError, match="row 0"):
            predict(model, row, {})
        assert pixels.in_flight == 0
    assert len(predict(model, {}, {})) == 1
