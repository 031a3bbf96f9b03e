"""How much an edit changes pixels that its reference result leaves unchanged, and for which edits that is not measured."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emuedit.data.image_io import Pixels
from emuedit.data.png import encode_png
from emuedit.data.records import EvalRecord
from emuedit.metrics.photo_benchmark import PhotoEdits
from emuedit.predictor.task_predictor import NO_EDIT
from emuedit.promotion import comparison


def record_of(source: Pixels, output: Pixels, exact: Pixels | None) -> EvalRecord:
    pngs = [None if pixels is None else encode_png(pixels) for pixels in (source, output, exact)]
    return EvalRecord(
        system="emuedit", task="local", instruction="make it red", source_caption="", target_caption="", given_task="local",
        seed=0, source=pngs[0] or b"", output=pngs[1] or b"", exact=pngs[2], success=True, reason="", scores={},
    )  # fmt: skip


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


@pytest.fixture
def photograph() -> tuple[Pixels, Pixels]:
    """A textured image and its reference result with a red quarter, both after JPEG compression."""
    noise = np.random.default_rng(0).integers(0, 40, (64, 64, 3))
    picture = (np.linspace(60, 180, 64)[:, None, None] + noise).astype(np.uint8)
    result = picture.copy()
    result[:32, :32] = (220, 20, 20)
    return as_jpeg(picture, 90), as_jpeg(result, 85)


def test_untouched_pixels_of_photographs_are_measured_despite_compression(photograph: tuple[Pixels, Pixels]) -> None:
    source, exact = photograph
    assert (source == exact).all(-1).mean() < 0.05
    darker, brighter = np.clip(source, 20, None) - 20, np.clip(source, None, 235) + 20
    changes = {
        name: comparison._measure_untouched(record_of(source, output.astype(np.uint8), exact))
        for name, output in {"result": exact, "input": source, "darker": darker, "brighter": brighter}.items()
    }
    assert changes["result"] == changes["input"] == 0.0
    assert all(isinstance(changes[name], float) and 0.05 < float(changes[name]) < 0.08 for name in ("darker", "brighter"))


def test_edits_without_untouched_pixels_have_a_reason(photograph: tuple[Pixels, Pixels]) -> None:
    source, _ = photograph
    assert comparison._measure_untouched(record_of(source, source, None)) == "without a reference result"
    other = ((source.astype(int) + 100) % 256).astype(np.uint8)
    assert "less than 5% of the pixels unchanged" in str(comparison._measure_untouched(record_of(source, source, other)))


def test_a_task_that_changes_the_whole_image_has_no_untouched_pixels() -> None:
    """Half of this reference equals the input by chance; an edit of an object has to leave that half."""
    source = np.full((64, 64, 3), 90, np.uint8)
    exact = source.copy()
    exact[:, :32] = (220, 20, 20)
    record = record_of(source, source + np.uint8(20), exact)
    style = replace(record, task="style", given_task="style")
    assert comparison._measure_untouched(style) == "of a task that changes the whole image"
    assert comparison._measure_untouched(record) == pytest.approx(20 / 255)
    measured = comparison._summarise("new", {"local": [record], "style": [style] * 2}.items(), "key")
    assert measured.untouched == {"local": [pytest.approx(20 / 255)], "style": [None, None]}
    assert measured.untouched_gaps == {"of a task that changes the whole image": 2}


def test_an_edit_that_was_not_made_says_nothing_about_untouched_pixels(photograph: tuple[Pixels, Pixels]) -> None:
    """A refused instruction leaves every pixel; and another task's edit changes others."""
    source, exact = photograph
    edited = record_of(source, exact, exact)
    records = [replace(edited, given_task=task) for task in (NO_EDIT, "style", "local")]
    measured = comparison._summarise("new", {"local": records}.items(), "key")
    assert measured.untouched == {"local": [None, None, 0.0]}
    assert measured.untouched_gaps == {"refused, or with another predicted task": 2}


def test_references_are_used_for_each_edit_that_has_one(photograph: tuple[Pixels, Pixels]) -> None:
    """`exact` of a benchmark of photographs is None unless all edits have a reference result."""
    source, exact = photograph
    edits = PhotoEdits("local", ["a", "b"], ["", ""], ["", ""], np.stack([source] * 2), [exact, None], None)  # type: ignore[arg-type]
    records = comparison._with_references([record_of(source, source, None)] * 2, comparison._references(edits))
    measured = comparison._summarise("new", {"local": records}.items(), "key")
    assert measured.untouched == {"local": [0.0, None]}
    assert measured.untouched_gaps == {"without a reference result": 1}
