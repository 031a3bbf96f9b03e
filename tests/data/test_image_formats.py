import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.BmpImagePlugin import DibImageFile
from PIL.PngImagePlugin import PngImageFile

from emuedit.data import image_io

SIDE_PX = 3000


def png(side_px: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (side_px, side_px)).save(stream, "PNG")
    return stream.getvalue()


def two_headers() -> bytes:
    """A PNG with the header of a small image before its own, which Pillow uses."""
    large = png(SIDE_PX)
    return png(64)[:33] + large[8:]


def bitmap(side_px: int) -> bytes:
    """The header of a bitmap with its mask, as icons have it."""
    return struct.pack("<IiiHHIIiiII", 40, side_px, 2 * side_px, 1, 32, 0, 0, 0, 0, 0, 0)


def icon(*images: bytes, side_px: int = 64) -> bytes:
    """An ICO file whose directory states one size for all images."""
    directory, content = struct.pack("<HHH", 0, 1, len(images)), b""
    for image in images:
        offset = 6 + 16 * len(images) + len(content)
        directory += struct.pack("<BBBBHHII", side_px % 256, side_px % 256, 0, 0, 1, 32, len(image), offset)
        content += image
    return directory + content


@pytest.mark.parametrize("image", [png(SIDE_PX), two_headers(), bitmap(SIDE_PX)], ids=["PNG", "PNG, two headers", "bitmap"])
def test_an_icon_that_is_larger_than_icons_are_is_not_decoded(
    image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow decodes icons when it opens them, whatever size their directory states, before any check of the size."""

    def load(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", load)
    monkeypatch.setattr(DibImageFile, "load", load)
    (tmp_path / "in.ico").write_bytes(content := icon(image))
    for read in (image_io.read_image, image_io.read_mask, image_io.check_image):
        with pytest.raises(image_io.ImageError, match=r"want at most .*, 256 x 256 in an icon, got more in .*\.ico; scale"):
            read(tmp_path / "in.ico")
    with pytest.raises(image_io.ImageError, match="whose header cannot be read"):
        image_io.read_size(tmp_path / "in.ico")
    assert image_io.count_pixels(content) == 0


@pytest.mark.parametrize("side_px", [64, 256])
@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_icons_up_to_256_pixels_are_read(kind: str, side_px: int, tmp_path: Path) -> None:
    file = tmp_path / "in.ico"
    Image.new("RGBA", (side_px, side_px), (9, 99, 199, 255)).save(file, sizes=[(side_px, side_px)], bitmap_format=kind)
    assert image_io.read_image(file).pixels.shape == (side_px, side_px, 3)
    assert image_io.count_pixels(file.read_bytes()) == side_px**2
    assert image_io.read_size(file) == (side_px, side_px)


@pytest.mark.parametrize("content", [b"\0\0\1\0", b"\0\0\1\0\0\0", icon(b""), icon(png(64)[:20]), icon(png(64))[:20]])
def test_a_damaged_icon_is_an_error(content: bytes) -> None:
    with pytest.raises(image_io.ImageError, match="not a readable image"):
        image_io.read_image(content)
