import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

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
    assert deep.notes == ("16 bits reduced to 8",)
    clear = image_io.read_image(encode(Image.new("RGBA", (9, 8), (200, 0, 0, 0))))
    assert (clear.pixels == 255).all()
    assert clear.notes == ("transparency composited on white",)
    full = image_io.read_image(encode(Image.new("RGBA", (9, 8), (200, 0, 0, 255))))
    assert (full.pixels == (200, 0, 0)).all()
    assert full.notes == ()
    assert image_io.read_image(encode(Image.new("P", (9, 8)))).pixels.shape == (8, 9, 3)
    assert image_io.read_image(encode(Image.new("CMYK", (9, 8)), "JPEG")).notes == (
        "CMYK converted to RGB without a colour profile",
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image_io.read_image(encode(Image.new("RGB", (9, 8)), "JPEG", exif=exif))
    assert (turned.pixels.shape, turned.notes) == ((9, 8, 3), ("rotated by its EXIF orientation",))


def png_of_16_bits(colour_type: int, channels: int, transparent: int | None = None) -> bytes:
    """A PNG of 9 x 8 px, which Pillow can read but not write: the value 257 * 100, in the first row `transparent` if not None."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    values = np.full((8, 9, channels), 257 * 100, ">u2")
    values[0] = values[0] if transparent is None else transparent
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    key = b"" if transparent is None else chunk(b"tRNS", np.full(channels, transparent, ">u2").tobytes())
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 8, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_16_bits_are_reduced_with_a_note_in_colour_too(colour_type: int, channels: int) -> None:
    picture = image_io.read_image(png_of_16_bits(colour_type, channels))
    assert picture.notes == ("16 bits reduced to 8",)
    assert (picture.pixels == 100).all()


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_the_transparent_colour_of_16_bits_stays_transparent(colour_type: int, channels: int) -> None:
    picture = image_io.read_image(png_of_16_bits(colour_type, channels, transparent=256 * 30 + 29))
    assert picture.notes == ("16 bits reduced to 8", "transparency composited on white")
    assert (picture.pixels[0] == 255).all()
    assert (picture.pixels[1:] == 100).all()
    with Image.open(io.BytesIO(image_io.to_png(picture.pixels, picture))) as written:
        alpha = np.asarray(written.getchannel("A"))
    assert (alpha[0] == 0).all()
    assert (alpha[1:] == 255).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "which is not a readable image"),
        (b"", "which is an empty file"),
        (encode(Image.effect_noise((64, 64), 50))[:900], "the image is damaged"),
        (encode(Image.new("RGB", (7, 20))), "want at least 8 pixels per side, got 7 x 20"),
        (encode(Image.new("1", (9000, 9000))), "want at most 67108864 pixels, got 9000 x 9000"),
        (encode(Image.new("F", (9, 8)), "TIFF"), "want 8 or 16 bits per value, got 32"),
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


def test_a_jpeg_is_written_at_quality_95(tmp_path: Path) -> None:
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    image_io.write_image(tmp_path / "out.jpg", np.asarray(picture))
    with Image.open(tmp_path / "out.jpg") as written, Image.open(io.BytesIO(encode(picture, "JPEG", quality=95))) as expected:
        assert written.quantization == expected.quantization  # type: ignore[attr-defined]


# What a file holds besides its pixels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_and_resolution_survive_and_the_orientation_is_not_applied_twice(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    picture = image_io.read_image(encode(Image.new("RGB", (16, 9)), "JPEG", exif=exif, dpi=(300, 300)))
    image_io.write_image(tmp_path / f"out{suffix}", picture.pixels, picture)
    with Image.open(tmp_path / f"out{suffix}") as written:
        assert written.size == (9, 16)
        assert written.getexif()[0x010F] == "a camera"
        assert written.getexif().get(0x0112, 1) == 1
        if suffix != ".webp":
            assert written.info["dpi"][0] == pytest.approx(300, abs=0.1)


def test_exif_that_cannot_be_written_again_is_left_out_and_told() -> None:
    """A phone wrote the rational number (-1, 0): struct.error in Pillow."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    raw = exif.tobytes().replace((72).to_bytes(4, "big"), b"\xff\xff\xff\xff")
    picture = image_io.read_image(encode(Image.new("RGB", (16, 9)), "JPEG", exif=raw))
    assert picture.pixels.shape == (16, 9, 3)


def test_of_a_phones_file_with_two_pictures_the_first_is_taken() -> None:
    file = encode(Image.new("RGB", (16, 9), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    picture = image_io.read_image(file)
    assert picture.pixels.shape == (9, 16, 3)
    assert picture.pixels[0, 0, 0] > 200
    assert picture.notes == ("the first of 2 images in the file",)


@pytest.mark.parametrize("error", [RuntimeError("codec"), KeyError(3), ZeroDivisionError(), MemoryError(), IndexError()])
def test_whatever_a_decoder_raises_becomes_one_error_with_the_name(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.avif").write_bytes(encode(Image.new("RGB", (9, 8))))

    def load(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(image_io.ImageError, match=r"photo\.avif is damaged"):
        image_io.read_image(tmp_path / "photo.avif")


def test_a_full_disk_costs_no_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_io.write_image(tmp_path / "out.png", np.full((9, 8, 3), 7, np.uint8))
    before = (tmp_path / "out.png").read_bytes()

    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_io.os, "fsync", fsync)
    with pytest.raises(image_io.ImageError, match="cannot be written: No space left on device; nothing was replaced"):
        image_io.write_image(tmp_path / "out.png", np.zeros((9, 8, 3), np.uint8))
    assert (tmp_path / "out.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def photo(height: int, width: int) -> np.ndarray:
    """A gradient with a little noise, which the levels of zlib compress differently."""
    noise = np.random.default_rng(0).integers(0, 8, (64, 64, 3))
    tiles = np.tile(noise, (-(-height // 64), -(-width // 64), 1))[:height, :width]
    return (np.linspace(0, 240, width)[None, :, None] + tiles).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "header"), [((2048, 2048), b"\x78\x9c"), ((2049, 2048), b"\x78\x01")])
def test_a_large_png_is_compressed_at_the_fastest_level_without_loss(size: tuple[int, int], header: bytes) -> None:
    pixels = photo(*size)
    png = image_io.to_png(pixels)
    start = png.index(b"IDAT") + 4
    assert png[start : start + 2] == header, "its zlib stream names the level"
    np.testing.assert_array_equal(image_io.read_image(png).pixels, pixels)


def test_a_large_webp_is_lossless_and_made_with_the_least_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = photo(256, 256)
    image_io.write_image(tmp_path / "small.webp", pixels)
    monkeypatch.setattr(image_io, "_FAST_PIXELS", 256 * 255)
    image_io.write_image(tmp_path / "large.webp", pixels)
    small, large = (tmp_path / f"{name}.webp" for name in ("small", "large"))
    assert small.read_bytes() != large.read_bytes()
    np.testing.assert_array_equal(image_io.read_image(large).pixels, pixels)


def test_the_pixels_of_a_file_are_counted_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_io.count_pixels(encode(Image.new("RGB", (20, 30)))) == 600
    assert image_io.count_pixels(encode(Image.new("RGB", (20, 30)), "JPEG")) == 600
    assert image_io.count_pixels(b"no picture") == 0
