"""Read image files of any format as upright RGB arrays, with notes on every conversion, or raise a clear error."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**24
"""Larger images need more memory than most machines have. The limit is ours."""
MIN_SIDE_PX = 8
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112


class ImageError(ValueError):
    """Raised for an image that cannot be edited."""


@dataclass(frozen=True)
class LoadedImage:
    """An image that can be edited."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""
    notes: tuple[str, ...]
    """Conversions that were applied."""


def read_image(source: str | Path | bytes) -> LoadedImage:
    """Read an image file, or its bytes, as RGB.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency is composited on white, and CMYK
    is converted. Raises ImageError for a file that is no image, is animated, damaged, too large or too small, or
    has 32-bit values.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        stream = io.BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    except OSError as error:
        raise ImageError(f"want a picture, got {name}: {error.strerror}") from error
    with stream:
        try:
            opened = Image.open(stream)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"want a picture (PNG, JPEG, WebP, ...), got {name}, which is none that can be read") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"want at most {MAX_PIXELS} pixels, got more in {name}; scale it down") from error
        with opened as image:
            _check_image(image, name)
            try:
                image.load()
            except (OSError, ValueError, SyntaxError) as error:
                raise ImageError(f"{name} is damaged: {error}") from error
            return convert_to_rgb(image)


def convert_to_rgb(image: Image.Image) -> LoadedImage:
    """A PIL image of any mode with 8 or 16 bits a value as upright RGB, see `read_image`."""
    notes = []
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        notes.append("turned as its EXIF data says")
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) // 257).astype(np.uint8))
        notes.append("16 bits made 8")
    if upright.has_transparency_data:
        with_alpha = upright.convert("RGBA")
        if np.asarray(with_alpha.getchannel("A")).min() < 255:
            notes.append("transparency laid on white")
        upright = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    elif upright.mode == "CMYK":
        notes.append("CMYK made RGB, without its colour profile")
    return LoadedImage(np.array(upright.convert("RGB")), tuple(notes))


def to_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, 3] as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write uint8 [H, W, 3] in the format of the suffix, one of WRITABLE_SUFFIXES. PNG, BMP and TIFF keep every pixel."""
    Image.fromarray(pixels).save(path)


def _check_image(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"want at most {MAX_PIXELS} pixels, got {width} x {height} in {name}; scale it down")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"want at least {MIN_SIDE_PX} pixels a side, got {width} x {height} in {name}")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise ImageError(f"want one picture, got {n_frames} frames in {name}; save one of them")
    if image.mode in ("I", "F"):
        raise ImageError(f"want 8 or 16 bits a value, got 32 in {name} (mode {image.mode}); save it as 8-bit RGB")
