"""Pictures at the door: uint8 arrays in, lossless PNG bytes out, and back bit for bit."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_MODES = ("L", "RGB", "RGBA")


class PictureError(ValueError):
    """Raised for an array that is no picture and for bytes that are no PNG of ours."""


def encode_png(pixels: NDArray[Any]) -> bytes:
    """PNG bytes of uint8 [H,W] (a mask), [H,W,3] or [H,W,4]. The same pixels give the same bytes."""
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped or 0 in pixels.shape:
        raise PictureError(
            f"want uint8 [H,W], [H,W,3] or [H,W,4] that is not empty; got {pixels.dtype} {list(pixels.shape)}; "
            "scale a float picture to 0..255, round it and move its channels last"
        )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="PNG", compress_level=6)
    return out.getvalue()


def decode_png(png: bytes) -> NDArray[np.uint8]:
    """The pixels that `encode_png` was given: uint8 [H,W] for a greyscale PNG, else [H,W,3] or [H,W,4]."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.mode not in _MODES:
                raise PictureError(f"want an 8-bit PNG of mode L, RGB or RGBA; got mode {image.mode}; convert it first")
            return np.array(image, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise PictureError(f"want PNG bytes, got {len(png)} bytes that start with {png[:8]!r}: {error}") from error
