import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data import image_io


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_pictures_of_every_mode_become_upright_rgb() -> None:
    grey = image_io.read_image(encode(Image.new("L", (9, 8), 77)))
    assert (grey.pixels == 77).all()
    assert (grey.pixels.shape, grey.notes) == ((8, 9, 3), ())
    deep = image_io.read_image(encode(Image.fromarray(np.full((8, 9), 257 * 100, np.uint16))))
    assert (deep.pixels == 100).all()
    assert deep.notes == ("16 bits made 8",)
    clear = image_io.read_image(encode(Image.new("RGBA", (9, 8), (200, 0, 0, 0))))
    assert (clear.pixels == 255).all()
    assert clear.notes == ("transparency laid on white",)
    full = image_io.read_image(encode(Image.new("RGBA", (9, 8), (200, 0, 0, 255))))
    assert (full.pixels == (200, 0, 0)).all()
    assert full.notes == ()
    assert image_io.read_image(encode(Image.new("P", (9, 8)))).pixels.shape == (8, 9, 3)
    assert image_io.read_image(encode(Image.new("CMYK", (9, 8)), "JPEG")).notes == ("CMYK made RGB, without its colour profile",)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image_io.read_image(encode(Image.new("RGB", (9, 8)), "JPEG", exif=exif))
    assert (turned.pixels.shape, turned.notes) == ((9, 8, 3), ("turned as its EXIF data says",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "which is none that can be read"),
        (b"", "which is none that can be read"),
        (encode(Image.effect_noise((64, 64), 50))[:900], "the picture is damaged"),
        (encode(Image.new("RGB", (7, 20))), "want at least 8 pixels a side, got 7 x 20"),
        (encode(Image.new("1", (5000, 5000))), "want at most 16777216 pixels, got 5000 x 5000"),
        (encode(Image.new("F", (9, 8)), "TIFF"), "want 8 or 16 bits a value, got 32"),
        (
            encode(Image.new("RGB", (9, 8)), "GIF", save_all=True, append_images=[Image.new("RGB", (9, 8), "red")]),
            "got 2 frames",
        ),
    ],
)
def test_a_picture_that_cannot_be_edited_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(image_io.ImageError, match=message):
        image_io.read_image(content)


@pytest.mark.parametrize("suffix", image_io.WRITABLE_SUFFIXES)
def test_every_writable_suffix_is_written_and_read_back(tmp_path: Path, suffix: str) -> None:
    pixels = np.full((9, 8, 3), (200, 100, 50), np.uint8)
    image_io.write_image(tmp_path / f"out{suffix}", pixels)
    assert np.abs(image_io.read_image(tmp_path / f"out{suffix}").pixels.astype(int) - pixels).max() <= 3
