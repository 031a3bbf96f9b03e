"""Contact sheets: captions stay under their cells."""

import numpy as np
import pytest
from PIL import Image

from emuedit.data import fonts
from emuedit.data.contact_sheet import CELL_PX, PAD_PX, picture_grid
from emuedit.data.fonts import load_font

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


def test_lines_of_a_caption_stay_lines_and_a_sheet_is_as_high_as_its_text() -> None:
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    single, double, wrapped = (picture_grid([("", white)], [text], lines=9).height for text in ("a b", "a\nb", LONG))
    assert single < double < wrapped


@pytest.mark.parametrize("name", ["ours", "InstructPix2Pix, 20 steps"])
def test_the_name_of_a_row_is_drawn_whole(name: str) -> None:
    """The images covered all but the first 60 pixels of it."""
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    sheet = picture_grid([(name, white)], [""], lines=1)
    left = sheet.width - CELL_PX - 2 * PAD_PX
    length = load_font(12).getlength(name)
    _, x = np.nonzero(ink(sheet))
    assert x.min() >= PAD_PX
    assert length - 3 < x.max() - PAD_PX < length + 3
    assert x.max() < left


def draw_caption(caption: str) -> bytes:
    return picture_grid([("", np.full((1, 64, 64, 3), 255, np.uint8))], [caption], lines=2).tobytes()


@pytest.mark.parametrize("letters", ["é", "—", "ł", "Ж", "λ"])
def test_letters_beyond_ascii_are_drawn(letters: str) -> None:
    """Pillow's font has a box for all of them, as for a letter of no alphabet."""
    assert draw_caption(letters) != draw_caption("\ue123")


def test_an_accent_is_drawn_with_its_letter() -> None:
    assert draw_caption("cafe\u0301") == draw_caption("café") != draw_caption("cafe")


def test_without_matplotlib_accents_and_dashes_are_drawn_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_font_file", lambda: None)
    assert draw_caption("— « crème brûlée »") == draw_caption('- " creme brulee "')
