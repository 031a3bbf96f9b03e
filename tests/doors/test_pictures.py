"""Doors of pictures: files as cameras, phones, scanners and the web make them. One line per case."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from emuedit.data import image_io
from tests.data import icc_profiles

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
UPRIGHT, TURNED = (32, 48, 3), (48, 32, 3)
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
TURN_NOTE = ("rotated by its EXIF orientation",)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def exif(**tags: Any) -> Image.Exif:
    result = Image.Exif()
    for name, value in tags.items():
        result[{"orientation": 0x0112, "description": 0x010E, "camera": 0x010F}[name]] = value
    return result


def damage(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :]


def kind_in_words() -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tag that says what kind of page it is, as text in place of a number."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = "photo"
    tags.tagtype[254] = 2
    return tags


def with_next_page(tiff: bytes, position: int) -> bytes:
    """A TIFF of Pillow's, whose only page says that another one begins at this position."""
    (start,) = struct.unpack("<I", tiff[4:8])
    (n_tags,) = struct.unpack("<H", tiff[start : start + 2])
    end = start + 2 + 12 * n_tags
    return tiff[:end] + struct.pack("<I", position) + tiff[end + 4 :]


ACCEPTED: dict[str, tuple[bytes, tuple[int, int, int], tuple[str, ...]]] = {
    "an empty EXIF segment (Pillow 6123)": (encode(PICTURE, "JPEG", exif=b"Exif\0\0"), UPRIGHT, ()),
    "EXIF that is none (Pillow 4852)": (encode(PICTURE, "JPEG", exif=b"Exif\0\0" + b"junk" * 8), UPRIGHT, ()),
    "an orientation that does not exist": (encode(PICTURE, "JPEG", exif=exif(orientation=9)), UPRIGHT, ()),
    "a turned PNG": (encode(PICTURE, "PNG", exif=exif(orientation=6)), TURNED, TURN_NOTE),
    "a turned WebP": (encode(PICTURE, "WEBP", exif=exif(orientation=6)), TURNED, TURN_NOTE),
    "a turned TIFF, which Pillow turns itself": (encode(PICTURE, "TIFF", tiffinfo={274: 6}), TURNED, TURN_NOTE),
    "an orientation in XMP (Pillow 6462)": (encode(PICTURE, "JPEG", xmp=XMP), TURNED, TURN_NOTE),
    "bytes after the end": (encode(PICTURE, "JPEG") + b"x" * 100, UPRIGHT, ()),
    "a compressed TIFF": (encode(PICTURE, "TIFF", compression="tiff_lzw"), UPRIGHT, ()),
    "a grey TIFF of a scanner": (encode(PICTURE.convert("L"), "TIFF"), UPRIGHT, ()),
    "a black and white TIFF of a scanner": (encode(PICTURE.convert("1"), "TIFF", compression="group4"), UPRIGHT, ()),
    "a TIFF in CMYK": (encode(PICTURE.convert("CMYK"), "TIFF"), UPRIGHT, ("CMYK converted to RGB without a colour profile",)),
    "a TIFF in Lab": (encode(PICTURE.convert("LAB"), "TIFF"), UPRIGHT, ()),
    "a TIFF with 16 bits": (encode(PICTURE.convert("I;16"), "TIFF"), UPRIGHT, ("16 bits reduced to 8",)),
    "a palette with transparent colours": (
        encode(PICTURE.convert("P"), "PNG", transparency=bytes(200)), UPRIGHT, ("transparency composited on white",)
    ),
    "a colour that counts as transparent": (encode(PICTURE, "PNG", transparency=(1, 2, 3)), UPRIGHT, ()),
    "the profile of colour pictures in a grey one": (
        encode(PICTURE.convert("L"), "PNG", icc_profile=icc_profiles.srgb()), UPRIGHT, ()
    ),
    "the profile of a scanner, which has no way back": (
        encode(PICTURE, "TIFF", icc_profile=icc_profiles.scanner()), UPRIGHT,
        ("Scanner converted to sRGB; its profile cannot be written again",),
    ),
    "a grey picture with the profile of grey ones": (
        encode(PICTURE.convert("L"), "JPEG", icc_profile=icc_profiles.grey(1.8)), UPRIGHT, ("Grey converted to sRGB",)
    ),
    "a profile that fits no picture": (
        encode(PICTURE, "PNG", icc_profile=LAB), UPRIGHT,
        ("its colour profile is unusable (cannot build transform); assumed sRGB",),
    ),
    "a GIF with one frame": (encode(PICTURE.convert("P"), "GIF"), UPRIGHT, ()),
    "a JPEG 2000": (encode(PICTURE, "JPEG2000"), UPRIGHT, ()),
    "a kind of page in words": (encode(PICTURE, "TIFF", tiffinfo=kind_in_words()), UPRIGHT, ()),
    "an icon, of which the largest": (encode(PICTURE.resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)]), (64, 64, 3), ()),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "which is an empty file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "run `git lfs pull`"),
    "the web page of a failed download": (b"\n<!DOCTYPE html><html>404</html>", "a web page, probably a failed download"),
    "a HEIC of a phone": (b"\0\0\0\x18ftypheic" + b"\0" * 200, "a HEIC photograph; save it as JPEG"),
    "a video": (b"\0\0\0\x18ftypmp42" + b"\0" * 200, "a video, or an image of an unknown format"),
    "a drawing": (b'<?xml version="1.0"?><svg width="64" height="64"></svg>', "an SVG drawing; export it as PNG"),
    "a PDF": (b"%PDF-1.4\n", "a PDF; export the page as PNG"),
    "a program that Pillow would run in Ghostscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n", "an EPS drawing; export it as PNG"
    ),
    "a raw photograph, of which Pillow reads the preview": (encode(PICTURE, "TIFF", tiffinfo={254: 1}), "a camera's raw file"),
    "a DNG": (encode(PICTURE, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "a camera's raw file"),
    "a JPEG that ends in its head": (encode(PICTURE, "JPEG")[:300], "a JPEG that is damaged or ends early"),
    "a JPEG that ends early": (encode(Image.effect_noise((64, 64), 50), "JPEG")[:900], "is damaged: image file is truncated"),
    "a PNG with a flipped byte": (damage(encode(PICTURE, "PNG"), 60), "is damaged"),
    "a TIFF whose next page cannot be read": (with_next_page(encode(PICTURE, "TIFF"), 50), "in.jpg is damaged: "),
    "a WebP that is damaged in its head": (damage(encode(PICTURE, "WEBP"), 13), "a WEBP image that is damaged or ends early"),
    "a TIFF with two pages": (encode(PICTURE, "TIFF", save_all=True, append_images=[PICTURE]), "want one image, got 2 frames"),
    "an animated WebP": (encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(90)]), "got 2 frames"),
}  # fmt: skip


LOSSY = "a JPEG is lossy, so all pixels change a little; .png, .webp and .tif keep unchanged ones"


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_odd_picture_is_read(case: str) -> None:
    content, shape, notes = ACCEPTED[case]
    picture = image_io.read_image(content)
    assert (picture.pixels.shape, picture.notes) == (shape, notes)


@pytest.mark.parametrize("case", [*ACCEPTED, *REFUSED])
def test_a_check_refuses_what_cannot_be_read_and_nothing_else(case: str, tmp_path: Path) -> None:
    (tmp_path / "in.jpg").write_bytes((ACCEPTED | REFUSED)[case][0])
    errors = []
    for read in (image_io.read_image, image_io.check_image):
        try:
            read(tmp_path / "in.jpg")
        except image_io.ImageError as error:
            errors.append(str(error))
    assert errors == [] if case in ACCEPTED else errors[0] == errors[1]


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_edit_of_an_odd_picture_is_written_in_every_format(case: str, tmp_path: Path) -> None:
    """What an odd file holds besides its pixels, such as how a TIFF stores them, does not end up in the file of its edit."""
    picture = image_io.read_image(ACCEPTED[case][0])
    is_transparent = "transparency composited on white" in picture.notes
    for suffix in image_io.WRITABLE_SUFFIXES:
        is_lossy = suffix in (".jpg", ".jpeg")
        notes = image_io.write_image(tmp_path / f"out{suffix}", picture.pixels, picture)
        assert notes == ((LOSSY,) if is_lossy else ())
        written = image_io.read_image(tmp_path / f"out{suffix}")
        keeps_alpha = is_transparent and not is_lossy and suffix != ".bmp"
        assert written.notes == (("transparency composited on white",) if keeps_alpha else ())
        assert written.pixels.shape == picture.pixels.shape
        if not is_lossy:
            np.testing.assert_array_equal(written.pixels, picture.pixels)


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_picture_says_what_it_is(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    (tmp_path / "in.jpg").write_bytes(content)
    with pytest.raises(image_io.ImageError, match=r"in\.jpg") as caught:
        image_io.read_image(tmp_path / "in.jpg")
    assert message in str(caught.value)


def test_a_pil_image_that_ends_early_is_our_error() -> None:
    """`Image.open` reads the head alone; the rest is met in the edit."""
    lazy = Image.open(io.BytesIO(REFUSED["a JPEG that ends early"][0]))
    with lazy, pytest.raises(image_io.ImageError, match="the image is damaged"):
        image_io.convert_to_rgb(lazy)


def test_a_pil_image_in_memory_has_no_limits_of_files() -> None:
    """The frame that the caller chose is taken, and no size is too small."""
    stream = io.BytesIO(encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]))
    with Image.open(stream) as animation:
        animation.seek(1)
        assert image_io.convert_to_rgb(animation).pixels.shape == UPRIGHT
    assert image_io.convert_to_rgb(Image.new("RGB", (4, 4))).pixels.shape == (4, 4, 3)


@pytest.mark.slow
def test_exif_too_long_for_a_jpeg_costs_the_exif_not_the_edit(tmp_path: Path) -> None:
    picture = image_io.read_image(encode(PICTURE, "PNG", exif=exif(camera="a camera", description="x" * 80_000)))
    notes = image_io.write_image(tmp_path / "out.jpg", picture.pixels, picture)
    assert notes == (LOSSY, "its EXIF data are too long for a JPEG and were dropped")
    assert image_io.read_image(tmp_path / "out.jpg").pixels.shape == UPRIGHT
    assert image_io.write_image(tmp_path / "out.webp", picture.pixels, picture) == ()
    with Image.open(tmp_path / "out.webp") as written:
        assert written.getexif()[0x010F] == "a camera"


def test_a_size_that_a_format_cannot_hold_is_our_error_and_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.webp").write_bytes(b"earlier")
    with pytest.raises(image_io.ImageError, match=r"out\.webp cannot be written: .*; nothing was replaced"):
        image_io.write_image(tmp_path / "out.webp", np.zeros((8, 16_400, 3), np.uint8))
    assert (tmp_path / "out.webp").read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["out.webp"]


def test_what_a_tiff_says_of_the_picture_survives(tmp_path: Path) -> None:
    source = encode(PICTURE, "TIFF", compression="tiff_lzw", tiffinfo={0x010F: "a scanner", 0x8298: "of a photographer"})
    picture = image_io.read_image(source)
    for name in ("out.tif", "out.jpg", "out.png"):
        image_io.write_image(tmp_path / name, picture.pixels, picture)
        with Image.open(tmp_path / name) as written:
            tags = written.getexif()
            assert (tags[0x010F], tags[0x8298]) == ("a scanner", "of a photographer")
