import io

import numpy as np
import pytest
from PIL import Image

from emuedit.data import image_io

ORIENTATION, CAMERA, IMAGE_WIDTH, EXIF_DIRECTORY, DATE = 0x0112, 0x010F, 0x0100, 0x8769, 0x9003
COLOURS = np.random.default_rng(0).integers(0, 256, (9, 16, 3), np.uint8)


def turned_picture(kind: str) -> Image.Image:
    exif = Image.Exif()
    exif[ORIENTATION], exif[CAMERA], exif[IMAGE_WIDTH] = 6, "a camera", 16
    exif.get_ifd(EXIF_DIRECTORY)[DATE] = "2020:01:01 00:00:00"
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    return Image.open(stream)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_callers_picture_keeps_its_exif_data_so_that_it_can_be_converted_again(kind: str) -> None:
    with turned_picture(kind) as picture:
        before = dict(picture.getexif())
        first, second = (image_io.convert_to_rgb(picture) for _ in range(2))
        assert dict(picture.getexif()) == before
    assert first.pixels.shape == (16, 9, 3)
    np.testing.assert_array_equal(second.pixels, first.pixels)
    assert (second.notes, second.metadata.exif) == (first.notes, first.metadata.exif)
    assert first.notes == ("rotated by its EXIF orientation",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_tags_about_the_image_are_copied_and_those_about_the_file_are_not(kind: str) -> None:
    with turned_picture(kind) as picture:
        copied = Image.Exif()
        copied.load(image_io.convert_to_rgb(picture).metadata.exif)
    assert copied[CAMERA] == "a camera"
    assert copied.get_ifd(EXIF_DIRECTORY)[DATE] == "2020:01:01 00:00:00"
    assert ORIENTATION not in copied
    assert IMAGE_WIDTH not in copied
