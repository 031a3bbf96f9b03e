"""Contact sheets: pictures in named rows with a caption under every column, for people who would rather look than read."""

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CELL_PX = 128
PAD = 8
INK, PAPER, FAINT = (32, 32, 36), (252, 252, 250), (120, 120, 126)
GOOD, BAD = (38, 152, 84), (206, 56, 48)
_LINE_CHARS = 22

Pictures = npt.NDArray[np.uint8]


def grid(
    rows: Sequence[tuple[str, Pictures]],
    captions: Sequence[str],
    lines: int,
    title: str = "",
    marks: tuple[str, Sequence[bool]] | None = None,
) -> Image.Image:
    """Pictures uint8 `[N, H, W, 3]` in named rows, with a caption of at most `lines` lines under every column.

    `marks`: the name of a row and N bools; a green frame stands for True, a red one for False.
    """
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    left, top, step = 60, 28 if title else PAD, 15
    n = len(captions)
    size = (left + n * (CELL_PX + PAD) + PAD, top + len(rows) * (CELL_PX + PAD) + lines * step + PAD)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD, PAD), title, INK, font)
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (CELL_PX + PAD)
        draw.text((PAD, y + CELL_PX // 2 - 8), name, FAINT, small)
        for c in range(n):
            x = left + c * (CELL_PX + PAD)
            sheet.paste(_cell(pictures[c]), (x, y))
            if marks and marks[0] == name:
                draw.rectangle((x - 3, y - 3, x + CELL_PX + 2, y + CELL_PX + 2), outline=GOOD if marks[1][c] else BAD, width=3)
    y = top + len(rows) * (CELL_PX + PAD)
    for c, caption in enumerate(captions):
        wrapped = textwrap.wrap(caption, _LINE_CHARS)
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: _LINE_CHARS - 2] + "…"]
        draw.multiline_text((left + c * (CELL_PX + PAD), y), "\n".join(wrapped), INK, small, spacing=2)
    return sheet


def tiled(sheets: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Sheets of one size side by side, `columns` to a row."""
    width, height = sheets[0].size
    n_rows = -(-len(sheets) // columns)
    out = Image.new("RGB", (columns * (width + PAD) - PAD, n_rows * (height + PAD)), PAPER)
    for i, one in enumerate(sheets):
        out.paste(one, ((i % columns) * (width + PAD), i // columns * (height + PAD)))
    return out


def _cell(picture: Pictures) -> Image.Image:
    """Longer side to the cell, in the middle of a paper-coloured square; enlarged pixels stay pixels."""
    shown = Image.fromarray(picture)
    scale = CELL_PX / max(shown.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    shown = shown.resize((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))), how)
    square = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    square.paste(shown, ((CELL_PX - shown.width) // 2, (CELL_PX - shown.height) // 2))
    return square
