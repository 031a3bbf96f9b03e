"""The font of contact sheets and charts: Matplotlib's copy of DejaVu Sans (Latin, Greek, Cyrillic, ...), else Pillow's own.

MLflow installs Matplotlib, which is not imported. A machine without it draws with Pillow's font, which has few letters besides
ASCII.
"""

import importlib.util
import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_FILE = "mpl-data/fonts/ttf/DejaVuSans.ttf"
_ASCII = str.maketrans({"–": "-", "—": "-", "‐": "-", "‑": "-", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
                        "‘": "'", "’": "'", "‚": "'"})  # fmt: skip


def load_font(size_px: int) -> Font:
    """The font whose lines are as long as those of Pillow's font of this size; bytes of images do not depend on libraqm."""
    file = _font_file()
    if file is None:
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(file, size_px - 1, layout_engine=ImageFont.Layout.BASIC)


def drawable(text: str) -> str:
    """The text as `load_font` can draw it: composed (Unicode NFC); with Pillow's font without accents, and with ASCII dashes."""
    if _font_file() is not None:
        return unicodedata.normalize("NFC", text)
    plain = unicodedata.normalize("NFKD", text.translate(_ASCII))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


@cache
def _font_file() -> Path | None:
    package = importlib.util.find_spec("matplotlib")
    file = Path(package.origin).parent / _FILE if package and package.origin else None
    return file if file and file.is_file() else None
