"""Masks of imported pairs are read as images are, and only from formats that are decoded in this process."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import EpsImagePlugin, Image

from emuedit.data import image_io
from emuedit.data.formats.row_conversion import RowRejected, _read_mask

_ORIENTATION = 0x0112


def read_mask(value: dict[str, Any], width: int, height: int) -> npt.NDArray[np.uint8]:
    mask = _read_mask(value, width, height)
    assert not isinstance(mask, RowRejected)
    return mask


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return {"bytes": stream.getvalue(), "path": None}


def test_an_eps_mask_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript on it."""
    runs: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: runs.append(arguments))
    assert _read_mask(encode(Image.new("RGB", (32, 32), "white"), "EPS"), 32, 32) == RowRejected("mask_unreadable")
    assert not runs


def test_a_16_bit_mask_is_scaled_and_not_clipped() -> None:
    """Its mean was 254: all values above 255 became white."""
    ramp = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    mask = read_mask(encode(Image.fromarray(ramp)), 32, 32)
    np.testing.assert_array_equal(mask, ramp // 257)
    assert np.mean(mask) == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_rotated_mask_is_turned_upright(mode: str) -> None:
    """The image is, so that the mask of a photograph taken upright was dropped or lay on its side."""
    stored = np.zeros((16, 24), np.uint8)
    stored[:, :6] = 255  # left, above after a turn by 90 degrees clockwise
    if mode == "RGBA":
        stored_image = Image.fromarray(np.dstack([np.zeros((16, 24, 3), np.uint8), 255 - stored]))
    else:
        stored_image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    value = encode(stored_image, exif=exif)
    mask = read_mask(value, 16, 24)
    assert image_io.read_image(value["bytes"]).pixels.shape[:2] == mask.shape == (24, 16)
    np.testing.assert_array_equal(mask[[0, 5, 6, 23], 0], (255, 255, 0, 0))


def test_large_animated_and_empty_masks_are_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    white = Image.new("L", (32, 32), 255)
    animated = encode(white, "GIF", save_all=True, append_images=[Image.new("L", (32, 32), 0)])
    unreadable = RowRejected("mask_unreadable")
    assert _read_mask(animated, 32, 32) == unreadable
    assert _read_mask({"bytes": b"", "path": "mask.png"}, 32, 32) == unreadable
    monkeypatch.setattr(image_io, "MAX_PIXELS", 32 * 32 - 1)
    assert _read_mask(encode(white), 32, 32) == unreadable


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK"])
def test_a_mask_without_alpha_is_white_where_the_image_may_change(mode: str) -> None:
    stored = np.zeros((16, 24), np.uint8)
    stored[:, :6] = 255
    mask = read_mask(encode(Image.fromarray(stored).convert(mode), "TIFF"), 24, 16)
    np.testing.assert_array_equal(mask, stored)


def test_an_opaque_image_with_alpha_has_an_empty_mask() -> None:
    """MagicBrush's masks are images with a transparent region; without one, nothing was edited."""
    mask = read_mask(encode(Image.new("RGBA", (32, 32), "white")), 32, 32)
    np.testing.assert_array_equal(mask, np.zeros((32, 32), np.uint8))
