"""A task is learned from some examples; when to stop and the change threshold are chosen on the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data.example_folder import ExampleEdit
from emuedit.data.image_io import Pixels
from emuedit.editing import learn_task
from emuedit.editing.api import Editor
from emuedit.editor.settings import EditSettings
from emuedit.training.task_inversion import InversionSettings
from tests.red_editor import RedSampler

N, SIDE_PX = 12, 16


class Stop(Exception):  # noqa: N818
    """Raised when the threshold has been chosen; nothing is written then."""


@pytest.fixture
def examples(tmp_path: Path) -> list[ExampleEdit]:
    """Random images, results of half their brightness, and an instruction with the row of each."""
    edits = []
    for row in range(N):
        before, after = tmp_path / f"{row}-before.png", tmp_path / f"{row}-after.png"
        pixels = np.random.default_rng(row).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)
        Image.fromarray(pixels).save(before)
        Image.fromarray(pixels // 2).save(after)
        edits.append(ExampleEdit(before, after, f"darken {row}"))
    return edits


def test_nothing_is_learned_from_held_out_examples_and_the_threshold_is_chosen_on_them(
    examples: list[ExampleEdit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of: dict[str, list[int]] = {}

    def encode_split(
        sampler: object, before: Pixels, after: Pixels, instructions: object, split: tuple[list[int], list[int]], *arguments: Any
    ) -> tuple[list[int], list[int]]:
        return split

    def invert(sampler: object, learned: list[int], held_out: list[int], settings: InversionSettings, *arguments: Any) -> None:
        assert (len(learned), len(held_out)) == (settings.n_examples, settings.n_held_out)
        rows_of.update(learned=learned, held_out=held_out)

    def choose_change_threshold(
        sampler: object, task: str, learned: object, before: Pixels, after: Pixels, instructions: Sequence[str], settings: object
    ) -> None:
        for images, files in ((before, [edit.before for edit in examples]), (after, [edit.after for edit in examples])):
            expected = np.stack([np.asarray(Image.open(files[row])) for row in rows_of["held_out"]])
            np.testing.assert_array_equal(images, expected)
        assert list(instructions) == [examples[row].instruction for row in rows_of["held_out"]]
        raise Stop

    for function in (encode_split, invert, choose_change_threshold):
        monkeypatch.setattr(learn_task, function.__name__, function)
    editor = Editor(RedSampler(), None, EditSettings(resolution=SIDE_PX))  # type: ignore[arg-type]
    settings = learn_task.settings_for("darken", N, tmp_path)
    with pytest.raises(Stop):
        learn_task.learn(editor, examples, settings, tmp_path / "out")
    assert sorted(rows_of["learned"] + rows_of["held_out"]) == list(range(N)), "want each example in one part"
    assert len(rows_of["learned"]) > len(rows_of["held_out"]) > 0
