"""Lossless PNG encoding and decoding of uint8 arrays, and image size from the header."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_MODES = ("L", "RGB", "RGBA")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class PngError(ValueError):
    """Raised for an array that is not an image, and for bytes that `decode_png` cannot read."""


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode uint8 [H,W] (a mask), [H,W,3] or [H,W,4]. Equal pixels give equal bytes.

    Raises PngError for other arrays.
    """
    has_picture_shape = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not has_picture_shape or 0 in pixels.shape:
        raise PngError(
            f"want uint8 [H,W], [H,W,3] or [H,W,4] that is not empty; got {pixels.dtype} {list(pixels.shape)}; "
            "scale a float image to 0..255, round it and move its channels last"
        )
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def decode_png(png: bytes) -> NDArray[np.uint8]:
    """Decode to uint8 [H,W] for a greyscale PNG, else [H,W,3] or [H,W,4].

    Raises PngError for other modes and for bytes that are not a PNG.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode not in _MODES:
                raise PngError(f"want an 8-bit PNG of mode L, RGB or RGBA; got mode {image.mode}; convert it first")
            return np.array(image, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise PngError(f"want PNG bytes, got {len(png)} bytes that start with {png[:8]!r}: {error}") from error


def png_size(png: bytes) -> tuple[int, int]:
    """(height, width) in px from the header, without decoding. Raises PngError for bytes that are not a PNG."""
    if png[:8] != _SIGNATURE or png[12:16] != b"IHDR":
        raise PngError(f"want PNG bytes, got {len(png)} bytes that start with {png[:8]!r}")
    return int.from_bytes(png[20:24], "big"), int.from_bytes(png[16:20], "big")
