"""Contact sheets: captions stay under their cells."""

import numpy as np
import pytest
from PIL import Image

from emuedit.data.contact_sheet import CELL_PX, PAD_PX, picture_grid

LONG = "replace the background with " + "wood " * 40


def ink(sheet: Image.Image) -> np.ndarray:
    """Which pixels are darker than the paper, bool [H, W]."""
    return np.asarray(sheet.convert("L")) < 200


@pytest.mark.parametrize("caption", ["replace the background", "turn the star into a purple triangle", "W" * 60, LONG])
def test_a_caption_does_not_reach_the_next_column(caption: str) -> None:
    pictures = np.full((2, 64, 64, 3), 255, np.uint8)
    sheet = picture_grid([("", pictures)], [caption, ""], lines=3)
    _, x = np.nonzero(ink(sheet))
    left = sheet.width - 2 * (CELL_PX + PAD_PX) - PAD_PX
    assert left <= x.min()
    assert x.max() < left + CELL_PX + PAD_PX
