"""Contact sheets: images in named rows, with a caption under every column."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from emuedit.data.fonts import Font, drawable, load_font
from emuedit.data.image_io import Pixels

CELL_PX = 128
PAD_PX = 8
TEXT_COLOR, BACKGROUND_COLOR, ROW_NAME_COLOR = (32, 32, 36), (252, 252, 250), (120, 120, 126)
GOOD_COLOR, BAD_COLOR = (38, 152, 84), (206, 56, 48)
_CAPTION_LINE_PX = 15
_MIN_ROW_NAME_WIDTH_PX = 60
_TITLE_HEIGHT_PX = 28


def picture_grid(
    rows: Sequence[tuple[str, Pixels | Sequence[Pixels]]],
    captions: Sequence[str],
    lines: int,
    title: str = "",
    marks: tuple[str, Sequence[bool]] | None = None,
) -> Image.Image:
    """Draw rows of N images uint8 `[H, W, 3]` of any sizes, with a caption of at most `lines` lines below each column, wrapped.

    `marks`: row name -> N bools; True draws a green frame, False a red one.
    """
    title_font, small_font = load_font(15), load_font(12)
    name_width = max((small_font.getlength(drawable(name)) for name, _ in rows), default=0)
    left = max(_MIN_ROW_NAME_WIDTH_PX, math.ceil(name_width) + 2 * PAD_PX)
    top, step = _TITLE_HEIGHT_PX if title else PAD_PX, CELL_PX + PAD_PX
    n_columns = len(captions)
    captions_top = top + len(rows) * step
    texts = [_wrap_caption(caption, lines, small_font) for caption in captions]
    n_lines = max((text.count("\n") + 1 for text in texts), default=1)
    size = (left + n_columns * step + PAD_PX, captions_top + n_lines * _CAPTION_LINE_PX + PAD_PX)
    sheet = Image.new("RGB", size, BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD_PX, PAD_PX), drawable(title), TEXT_COLOR, title_font)
    for row_index, (row_name, pictures) in enumerate(rows):
        y = top + row_index * step
        draw.text((PAD_PX, y + CELL_PX // 2 - 8), drawable(row_name), ROW_NAME_COLOR, small_font)
        for column_index in range(n_columns):
            x = left + column_index * step
            sheet.paste(_fit_cell(pictures[column_index]), (x, y))
            if marks and marks[0] == row_name:
                color = GOOD_COLOR if marks[1][column_index] else BAD_COLOR
                draw.rectangle((x - 3, y - 3, x + CELL_PX + 2, y + CELL_PX + 2), outline=color, width=3)
    for column_index, text in enumerate(texts):
        draw.multiline_text((left + column_index * step, captions_top), text, TEXT_COLOR, small_font, spacing=2)
    return sheet


def tile_sheets(sheets: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Arrange sheets in rows of `columns` sheets; all cells have the largest width and height."""
    width, height = (max(sizes) for sizes in zip(*(sheet.size for sheet in sheets), strict=True))
    n_rows = -(-len(sheets) // columns)
    tiled = Image.new("RGB", (columns * (width + PAD_PX) - PAD_PX, n_rows * (height + PAD_PX)), BACKGROUND_COLOR)
    for index, sheet in enumerate(sheets):
        tiled.paste(sheet, ((index % columns) * (width + PAD_PX), index // columns * (height + PAD_PX)))
    return tiled


def _wrap_caption(caption: str, lines: int, font: Font) -> str:
    """Wrap the caption to at most `lines` lines of the cell's width; a truncated one ends in an ellipsis."""
    caption = drawable(caption)
    for n_chars in range(CELL_PX, 0, -1):
        wrapped = [line for paragraph in caption.splitlines() for line in textwrap.wrap(paragraph, n_chars)]
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1][: max(n_chars - 2, 1)] + "…"]
        if all(font.getlength(line) <= CELL_PX for line in wrapped):
            break
    return "\n".join(wrapped)


def _fit_cell(picture: Pixels) -> Image.Image:
    """Scale the longer side to the cell and centre the image. Small images are enlarged by nearest neighbour."""
    image = Image.fromarray(picture)
    scale = CELL_PX / max(image.size)
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), BACKGROUND_COLOR)
    cell.paste(image, ((CELL_PX - image.width) // 2, (CELL_PX - image.height) // 2))
    return cell
