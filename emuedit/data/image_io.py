"""Read image files as upright sRGB arrays, with a note on every conversion, and write them back.

Metadata (EXIF, resolution, colour profile) are kept and written with the result. An image in another colour space is edited in
sRGB; unchanged pixels keep their values in the original space.
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

from emuedit.data import colour_profile, image_exif, image_formats
from emuedit.data.atomic_file import replacing

Pixels = npt.NDArray[np.uint8]
"""An image uint8 [H, W, 3], or N images [N, H, W, 3], unless another shape is stated."""
MAX_PIXELS = 2**26
"""Maximum image size: reading needs about 50 bytes per pixel. Ours."""
MIN_SIDE_PX = 8
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_WITH_PROFILE = {"PNG", "JPEG", "WEBP", "TIFF"}
"""Formats for which Pillow can write EXIF and a colour profile."""
_WITH_ALPHA = {"PNG", "WEBP", "TIFF"}
"""Formats with transparency: unchanged pixels keep theirs, changed ones are opaque."""
_FAST_PIXELS = 2**22
"""Above this size, PNG and lossless WebP are compressed with the least effort: photos take a fifth of the time or less, and a
sixth (WebP: a third) more bytes."""
_LEAST_EFFORT: dict[str, dict[str, int]] = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0, "quality": 0}}
_JPEG_QUALITY = 95
_JPEG_MAX_EXIF = 65533
"""Maximum size of a JPEG segment in bytes."""
MIN_CHANGE = 0.1
"""Minimum difference between input and reference result of a changed pixel, in the channel that differs most, in [0, 1]; less is
noise, since JPEG compression and scaling of photographs change most pixels a little."""


class ImageError(ValueError):
    """Raised for an image that cannot be edited or written."""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file."""

    exif: bytes = b""
    """EXIF without the orientation, which is applied to the pixels."""
    profile: bytes = b""
    """ICC profile of an RGB colour space; empty: sRGB."""
    dpi: tuple[float, float] | None = None
    in_profile: Pixels | None = None
    """The pixels in the space of `profile`, [H, W, 3]; None for sRGB."""
    transparent: Pixels | None = None
    """The pixels with their alpha in the space of `profile`, [H, W, 4]; None for an opaque image."""


@dataclass(frozen=True)
class LoadedImage:
    """An image to edit."""

    pixels: Pixels
    """[H, W, 3], sRGB."""
    notes: tuple[str, ...]
    """Notes on the applied conversions."""
    metadata: Metadata = field(default_factory=Metadata)


def read_image(source: str | Path | bytes) -> LoadedImage:
    """Read an image file, or its bytes, as sRGB.

    Applies the EXIF orientation, converts colour profiles, scales 16-bit grey to 8 bits, composites transparency on white, and
    reads the first image of a multi-picture file (MPO). Raises ImageError for a file that is not an image, is animated, damaged,
    too large or too small, has 32-bit values or is a camera's raw file.
    """
    with _opened(source) as image:
        return _convert_to_rgb(image)


def read_mask(source: str | Path | bytes) -> Pixels:
    """Read a mask [H, W] from an image file, or its bytes: 255 where an image with alpha is transparent, else the grey values.

    Without regard to colour profiles; otherwise as `read_image`, with the same errors.
    """
    with _opened(source) as image:
        mask = image_formats.to_8_bits(image_exif.turn_upright(image, [])[0])
        has_alpha = mask.has_transparency_data
        return 255 - np.asarray(image_formats.with_alpha(mask).getchannel("A")) if has_alpha else np.array(mask.convert("L"))


def check_image(source: str | Path | bytes) -> None:
    """Decode an image file, or its bytes, without any conversion. Raises ImageError where `read_image` would."""
    with _opened(source) as image:
        image.load()


def count_pixels(content: bytes) -> int:
    """Width times height by the header of an image file, without decoding; 0 for bytes that `read_image` refuses."""
    try:
        with _opened(content) as image:
            return image.width * image.height
    except ImageError:
        return 0


def read_size(file: Path) -> tuple[int, int]:
    """Width and height in px of an image file after its EXIF rotation, by its header. Raises ImageError if it has none."""
    try:
        with file.open("rb") as stream, image_formats.open_image(stream) as image:
            width, height = image.size
            swaps_sides = image_exif.swaps_sides(image)
    except Exception as error:  # as for `Image.open`
        raise ImageError(f"want an image (PNG, JPEG, WebP, ...), got {file}, whose header cannot be read") from error
    return (height, width) if swaps_sides else (width, height)


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Image.Image]:
    """The image of a file, or of its bytes: opened and checked, not decoded. Errors of the block become an ImageError."""
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"want an image, got {name}: {error.strerror}") from error
    try:
        opened = image_formats.open_image(io.BytesIO(content))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"want at most {MAX_PIXELS} pixels, 256 x 256 in an icon, got more in {name}; scale it down") from error
    except Exception as error:  # decoders raise many classes: OSError, SyntaxError, struct.error, RuntimeError, ...
        kind = image_formats.describe_unreadable(content)
        raise ImageError(f"want an image (PNG, JPEG, WebP, ...), got {name}, which is {kind}") from error
    with opened as image, _decoder_errors(name):
        if image_formats.is_raw_preview(image, content):
            raise ImageError(f"want an image, got {name}, a camera's raw file or a preview; develop it and save it as PNG")
        _check_image(image, name)
        yield image


def convert_to_rgb(image: Image.Image) -> LoadedImage:
    """Convert a PIL image of any mode with 8 or 16 bits per value to upright sRGB, see `read_image`.

    Uses the current frame. Raises ImageError for a damaged image.
    """
    with _decoder_errors("the image"):
        return _convert_to_rgb(image)


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    """Convert any error of the decoder (loading, counting frames) to an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # as for `Image.open`
        raise ImageError(f"{name} is damaged: {error}") from error


def _convert_to_rgb(image: Image.Image) -> LoadedImage:
    notes = []
    if getattr(image, "format", None) == "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"the first of {image.n_frames} images in the file")  # type: ignore[attr-defined]
    has_16_bits = image_formats.has_16_bits(image)  # no longer known after loading
    upright, exif = image_exif.turn_upright(image, notes)
    upright = image_formats.to_8_bits(upright)
    if has_16_bits:
        notes.append("16 bits reduced to 8")
    opaque, with_alpha = _composite_on_white(upright)
    if with_alpha is not None:
        notes.append("transparency composited on white")
    profile = image.info.get("icc_profile") or b""
    in_srgb = colour_profile.to_srgb(opaque, profile)
    notes += [in_srgb.note] if in_srgb.note else []
    if with_alpha is not None and in_srgb.image is not opaque and in_srgb.in_profile is None:  # will be written as sRGB
        alpha = with_alpha.getchannel("A")
        with_alpha = colour_profile.to_srgb(with_alpha.convert(opaque.mode), profile).image
        with_alpha.putalpha(alpha)
    metadata = Metadata(
        exif,
        profile if in_srgb.in_profile is not None else b"",
        _dpi(image),
        np.array(in_srgb.in_profile) if in_srgb.in_profile is not None else None,
        np.array(with_alpha) if with_alpha is not None else None,
    )
    return LoadedImage(np.array(in_srgb.image.convert("RGB")), tuple(notes), metadata)


def _composite_on_white(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image without alpha, grey if it was grey, and the image in mode RGBA if any of its pixels is transparent."""
    if not image.has_transparency_data:
        return image, None
    with_alpha = image_formats.with_alpha(image)
    opaque = Image.alpha_composite(Image.new("RGBA", with_alpha.size, "white"), with_alpha)
    is_transparent = np.asarray(with_alpha.getchannel("A")).min() < 255
    return opaque.convert("L" if colour_profile.is_grey(image) else "RGB"), with_alpha if is_transparent else None


def fit_square(pixels: Pixels, side_px: int) -> Pixels:
    """The centre square of an image [H, W, 3], scaled to side_px."""
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (side_px, side_px), Image.Resampling.LANCZOS))


def to_png(pixels: Pixels, source: LoadedImage | None = None) -> bytes:
    """Encode uint8 [H, W, 3] as the bytes of a PNG file; with the metadata of `source`, the unedited image."""
    stream = io.BytesIO()
    _save(stream, "PNG", pixels, source)
    return stream.getvalue()


def write_image(path: Path, pixels: Pixels, source: LoadedImage | None = None) -> tuple[str, ...]:
    """Write uint8 [H, W, 3] in the format of the suffix, one of WRITABLE_SUFFIXES; all but JPEG are lossless.

    source: the unedited image; its EXIF, resolution and colour profile are written too, and unchanged pixels get the file's
    original values. The file is written atomically (temporary file, then rename). Returns notes on what the format cannot store.
    Raises ImageError if the file cannot be written.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    try:
        with replacing(path) as partial, partial.open("wb") as stream:
            notes = _save(stream, kind, pixels, source)
            stream.flush()
            os.fsync(stream.fileno())
    except Exception as error:  # encoders raise many classes, e.g. ValueError for a WebP above 16383 pixels per side
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{path} cannot be written: {reason}; nothing was replaced") from error
    return notes


def _save(stream: Any, kind: str, pixels: Pixels, source: LoadedImage | None) -> tuple[str, ...]:
    metadata = source.metadata if source is not None else Metadata()
    exif, notes = metadata.exif, tuple[str, ...]()
    options: dict[str, Any] = {"dpi": metadata.dpi} if metadata.dpi and kind != "WEBP" else {}
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}
    if pixels.shape[0] * pixels.shape[1] > _FAST_PIXELS:
        options |= _LEAST_EFFORT.get(kind, {})
    if kind == "JPEG":
        options |= {"quality": _JPEG_QUALITY}
        if source is not None:
            notes += ("a JPEG is lossy, so all pixels change a little; .png, .webp and .tif keep unchanged ones",)
        if len(exif) > _JPEG_MAX_EXIF:
            exif, notes = b"", (*notes, "its EXIF data are too long for a JPEG and were dropped")
    if kind in _WITH_PROFILE:
        options |= {"exif": exif} if exif else {}
        options |= {"icc_profile": metadata.profile} if metadata.profile else {}
        if source is not None:
            pixels = _with_original_values(pixels, source, kind in _WITH_ALPHA)
    Image.fromarray(pixels).save(stream, kind, **options)
    return notes


def _with_original_values(pixels: Pixels, source: LoadedImage, keeps_alpha: bool) -> Pixels:
    """sRGB [H, W, 3] in the space of the source's profile; pixels equal to the source's have the values of its file.

    Returns [H, W, 4] for a source with transparency if `keeps_alpha`: changed pixels are opaque.
    """
    profile, in_profile, transparent = source.metadata.profile, source.metadata.in_profile, source.metadata.transparent
    if in_profile is None and transparent is None:
        return pixels
    unchanged = (pixels == source.pixels).all(axis=-1, keepdims=True)
    if in_profile is not None:
        converted = np.asarray(colour_profile.from_srgb(Image.fromarray(pixels), profile))
        pixels = np.where(unchanged, in_profile, converted)
    if transparent is not None and keeps_alpha:
        opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        pixels = np.where(unchanged, transparent, opaque)
    return pixels


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch (x, y), or None if the file has no values that can be written again."""
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
        raise ImageError(f"want at least {MIN_SIDE_PX} pixels per side, got {width} x {height} in {name}")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1 and image.format != "MPO":
        raise ImageError(f"want one image, got {n_frames} frames in {name}; save one of them")
    if image.mode in ("I", "F"):
        raise ImageError(f"want 8 or 16 bits per value, got 32 in {name} (mode {image.mode}); save it as 8-bit RGB")
