from pathlib import Path

import pytest

from emuedit.config import ParamsError
from emuedit.predictor.non_instructions import NON_INSTRUCTIONS, load_non_instructions
from tests.repository import ROOT


def test_what_is_reported_is_not_what_was_fitted() -> None:
    fit, test = (load_non_instructions(ROOT / NON_INSTRUCTIONS, split) for split in ("fit", "test"))
    assert fit.keys() == test.keys()
    fitted, tested = ({text.casefold() for texts in kinds.values() for text in texts} for kinds in (fit, test))
    assert not fitted & tested
    assert len(tested) >= 150
    assert {"what is the weather in Paris?".casefold(), "translate this text", "rotate the video"} <= fitted | tested


def test_a_file_without_splits_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text("question:\n  fit: [who]\n")
    assert load_non_instructions(file, "fit") == {"question": ["who"]}
    with pytest.raises(ParamsError, match="want a list `test` of texts for each kind"):
        load_non_instructions(file, "test")
