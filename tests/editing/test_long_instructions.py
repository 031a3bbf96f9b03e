from collections.abc import Callable

import pytest

from emuedit import EditError, Editor
from emuedit.editing.api import TruncatedInstructionWarning
from emuedit.editing.editor_inputs import check_instructions
from emuedit.editor.sampling import EditSampler
from tests.editing.test_api import SETTINGS, pixels
from tests.red_editor import WordPredictor


@pytest.mark.slow
def test_an_instruction_that_is_longer_than_the_text_encoder_reads_is_warned_of(
    make_sampler: Callable[..., EditSampler],
) -> None:
    editor = Editor(make_sampler(), WordPredictor(), SETTINGS)  # type: ignore[arg-type]
    with pytest.warns(
        TruncatedInstructionWarning, match=r"'please please .* is truncated to the text encoder's \d+ tokens"
    ) as warned:
        editor.edit([pixels()] * 2, ["please " * 80 + "make it red", "red"])
    assert len(warned) == 1


def test_an_instruction_has_a_maximum_length() -> None:
    assert check_instructions(["x" * 10_000]) == ["x" * 10_000]
    with pytest.raises(EditError, match="want an instruction of at most 10000 characters, got 10001; shorten it"):
        check_instructions(["make it red", "x" * 10_001])
