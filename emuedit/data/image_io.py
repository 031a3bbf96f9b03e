"""Read image files of any format as upright sRGB arrays, with notes on every conversion, or raise a clear error; write them back.

What a file holds besides its pixels (EXIF, resolution, colour profile) is kept and written with the result. A picture in another
colour space is edited in sRGB; the pixels that an edit leaves alone get their old values of that space back.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from emuedit.data import colour_profile, image_formats
from emuedit.data.atomic_file import replacing

MAX_PIXELS = 2**26
"""Larger images need more memory than most machines have: about 50 bytes a pixel. The limit is ours."""
MIN_SIDE_PX = 8
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the picture upright; 1 is upright."""
_WITH_PROFILE = {"PNG", "JPEG", "WEBP", "TIFF"}
"""Formats in which Pillow writes EXIF and a colour profile."""
_JPEG_QUALITY = 95
_JPEG_MAX_EXIF = 65533
"""Bytes that one segment of a JPEG can hold."""


class ImageError(ValueError):
    """Raised for an image that cannot be edited or written."""


@dataclass(frozen=True)
class Metadata:
    """What a file holds besides its pixels."""

    exif: bytes = b""
    """Without the orientation, which is applied to the pixels."""
    profile: bytes = b""
    """ICC profile of an RGB space; empty: sRGB."""
    dpi: tuple[float, float] | None = None
    in_profile: npt.NDArray[np.uint8] | None = None
    """The pixels in the space of `profile`, [H, W, 3]; None for sRGB."""


@dataclass(frozen=True)
class LoadedImage:
    """An image that can be edited."""

    pixels: npt.NDArray[np.uint8]
    """[H, W, 3], sRGB."""
    notes: tuple[str, ...]
    """Conversions that were applied."""
    metadata: Metadata = field(default_factory=Metadata)


def read_image(source: str | Path | bytes) -> LoadedImage:
    """Read an image file, or its bytes, as sRGB.

    The EXIF orientation is applied, colour profiles are converted, 16-bit grey is scaled to 8 bits, transparency is composited on
    white, and of a phone's file with several pictures (MPO) the first is taken. Raises ImageError for a file that is no image, is
    animated, damaged, too large or too small, has 32-bit values or is a camera's raw file, whatever the decoder raises for it.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"want a picture, got {name}: {error.strerror}") from error
    try:
        opened = Image.open(io.BytesIO(content), formats=image_formats.readable_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"want at most {MAX_PIXELS} pixels, got more in {name}; scale it down") from error
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, RuntimeError, ...
        kind = image_formats.describe_unreadable(content)
        raise ImageError(f"want a picture (PNG, JPEG, WebP, ...), got {name}, which is {kind}") from error
    with opened as image, _decoder_errors(name):
        if image_formats.is_raw_preview(image, content):
            raise ImageError(f"want a picture, got {name}, a camera's raw file or a preview; develop it and save it as PNG")
        _check_image(image, name)
        return _convert_to_rgb(image)


def convert_to_rgb(image: Image.Image) -> LoadedImage:
    """A PIL image of any mode with 8 or 16 bits a value as upright sRGB, see `read_image`.

    Of several frames the present one is taken. Raises ImageError for an image that is damaged.
    """
    with _decoder_errors("the picture"):
        return _convert_to_rgb(image)


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Whatever the decoder raises becomes an ImageError: in loading, and in counting the frames."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # as for `Image.open`
        raise ImageError(f"{name} is damaged: {error}") from error


def _convert_to_rgb(image: Image.Image) -> LoadedImage:
    notes = []
    if getattr(image, "format", None) == "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {image.n_frames} pictures in the file")  # type: ignore[attr-defined]
    upright, exif = _turn_upright(image, notes)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) // 257).astype(np.uint8))
        notes.append("16 bits made 8")
    profile = image.info.get("icc_profile") or b""
    if upright.has_transparency_data:
        with_alpha = upright.convert("RGBA")
        if np.asarray(with_alpha.getchannel("A")).min() < 255:
            notes.append("transparency laid on white")
        upright = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    in_srgb, note = colour_profile.to_srgb(upright, profile)
    notes += [note] if note else []
    keeps_profile = in_srgb is not upright and upright.mode in ("RGB", "RGBA")
    metadata = Metadata(
        exif, profile if keeps_profile else b"", _dpi(image), np.array(upright.convert("RGB")) if keeps_profile else None
    )
    return LoadedImage(np.array(in_srgb.convert("RGB")), tuple(notes), metadata)


def fit_square(pixels: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """The centre square of a picture [H, W, 3], scaled to side_px."""
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (side_px, side_px), Image.Resampling.LANCZOS))


def to_png(pixels: npt.NDArray[np.uint8], source: LoadedImage | None = None) -> bytes:
    """Encode uint8 [H, W, 3] as the bytes of a PNG file; with the metadata of `source`, of which it is an edit."""
    stream = io.BytesIO()
    _save(stream, "PNG", pixels, source)
    return stream.getvalue()


def write_image(path: Path, pixels: npt.NDArray[np.uint8], source: LoadedImage | None = None) -> tuple[str, ...]:
    """Write uint8 [H, W, 3] in the format of the suffix, one of WRITABLE_SUFFIXES. PNG, BMP and TIFF keep every pixel.

    source: the picture of which it is an edit; its EXIF, resolution and colour profile are written too, and pixels that are equal
    in both get the file's own values. The file is written beside `path` and then renamed, so that a full disk costs no file that
    was there. Returns notes on what the format cannot hold. Raises ImageError for what cannot be written.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        with replacing(path) as partial, partial.open("wb") as stream:
            notes = _save(stream, kind, pixels, source)
            stream.flush()
            os.fsync(stream.fileno())
    except Exception as error:  # encoders raise what they like, such as ValueError for a WebP above 16383 pixels a side
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{path} cannot be written: {reason}; nothing was replaced") from error
    return notes


def _save(stream: Any, kind: str, pixels: npt.NDArray[np.uint8], source: LoadedImage | None) -> tuple[str, ...]:
    metadata = source.metadata if source is not None else Metadata()
    exif, notes = metadata.exif, tuple[str, ...]()
    options: dict[str, Any] = {"dpi": metadata.dpi} if metadata.dpi and kind != "WEBP" else {}
    if kind == "JPEG":
        options |= {"quality": _JPEG_QUALITY}
        if len(exif) > _JPEG_MAX_EXIF:
            exif, notes = b"", ("its EXIF data are too long for a JPEG and are left out",)
    if kind in _WITH_PROFILE:
        options |= {"exif": exif} if exif else {}
        if metadata.in_profile is not None and source is not None:
            unchanged = (pixels == source.pixels).all(axis=-1, keepdims=True)
            converted = np.asarray(colour_profile.from_srgb(Image.fromarray(pixels), metadata.profile))
            pixels = np.where(unchanged, metadata.in_profile, converted)
            options |= {"icc_profile": metadata.profile}
    Image.fromarray(pixels).save(stream, kind, **options)
    return notes


def _turn_upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes]:
    """The image as its EXIF orientation says, and its EXIF data without it; a note on those that are left out."""
    orientation_of_tiff = getattr(image, "tag_v2", {}).get(_EXIF_ORIENTATION, 1)  # Pillow turns a TIFF itself when it loads it
    image.load()
    try:
        exif = image.getexif()
        orientation = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises what its parser meets: struct.error, SyntaxError, KeyError, ...
        notes.append("its EXIF data cannot be read and are left out")
        return image, b""
    upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    if orientation in _TURNS or orientation_of_tiff in _TURNS:
        notes.append("turned as its EXIF data says")
    exif.pop(_EXIF_ORIENTATION, None)
    image_formats.keep_descriptive(exif)
    try:
        return upright, exif.tobytes() if len(exif) else b""
    except Exception:  # such as struct.error for a rational number below zero
        notes.append("its EXIF data cannot be written again and are left out")
        return upright, b""


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, across and down, where the file says so in numbers that can be written again."""
    dpi = image.info.get("dpi")
    try:
        across, down = (float(value) for value in dpi) if dpi else (0.0, 0.0)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 2**16 and 0 < down < 2**16 else None


def _check_image(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"want at most {MAX_PIXELS} pixels, got {width} x {height} in {name}; scale it down")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"want at least {MIN_SIDE_PX} pixels a side, got {width} x {height} in {name}")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1 and image.format != "MPO":
        raise ImageError(f"want one picture, got {n_frames} frames in {name}; save one of them")
    if image.mode in ("I", "F"):
        raise ImageError(f"want 8 or 16 bits a value, got 32 in {name} (mode {image.mode}); save it as 8-bit RGB")
