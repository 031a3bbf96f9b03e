"""Pictures as people have them: a file of any kind -> upright RGB bytes, with notes on what was changed; or a clear refusal."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 2**24  # an edit of more needs more memory than most have; ours
MIN_SIDE_PX = 8


class ImageError(ValueError):
    """Raised for a picture that cannot be edited."""


@dataclass(frozen=True)
class LoadedImage:
    """A picture that can be edited."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""
    notes: tuple[str, ...]
    """What was changed to make it so."""


def read_image(source: str | Path | bytes) -> LoadedImage:
    """A picture file, or its bytes. Turned as EXIF says; 16-bit grey scaled to 8 bit; transparency laid on white; CMYK converted.

    Raises ImageError for what is no picture, moves, is damaged, is too large or too small, or holds 32-bit values.
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
        with opened as picture:
            _check(picture, name)
            try:
                picture.load()
            except (OSError, ValueError, SyntaxError) as error:
                raise ImageError(f"{name} is damaged: {error}") from error
            return _upright(picture)


def to_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] -> the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _check(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"want at most {MAX_PIXELS} pixels, got {width} x {height} in {name}; scale it down")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"want at least {MIN_SIDE_PX} pixels a side, got {width} x {height} in {name}")
    if getattr(picture, "n_frames", 1) > 1:
        raise ImageError(f"want one picture, got {getattr(picture, 'n_frames', 1)} frames in {name}; save one of them")
    if picture.mode in ("I", "F"):
        raise ImageError(f"want 8 or 16 bits a value, got 32 in {name} (mode {picture.mode}); save it as 8-bit RGB")


def _upright(picture: Image.Image) -> LoadedImage:
    notes = []
    turned = ImageOps.exif_transpose(picture)
    if picture.getexif().get(0x0112, 1) != 1:  # Orientation
        notes.append("turned as its EXIF data says")
    if turned.mode.startswith("I;16"):
        turned = Image.fromarray((np.asarray(turned).astype(np.uint32) // 257).astype(np.uint8))
        notes.append("16 bits made 8")
    if turned.has_transparency_data:
        seen = turned.convert("RGBA")
        if np.asarray(seen.getchannel("A")).min() < 255:
            notes.append("transparency laid on white")
        turned = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    elif turned.mode == "CMYK":
        notes.append("CMYK made RGB, without its colour profile")
    return LoadedImage(np.array(turned.convert("RGB")), tuple(notes))
