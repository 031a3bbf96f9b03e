"""Image file formats: supported formats, descriptions of other files, 16-bit values and transparency."""

from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import DibImageFile
from PIL.IcoImagePlugin import IcoFile
from PIL.PngImagePlugin import PngImageFile

from emuedit.data import git_lfs
from emuedit.data.image_exif import DNG_VERSION

_READ = (
    "PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "ICO",
    "PPM", "PSD", "TGA", "PCX", "QOI", "SGI",
)  # fmt: skip
"""Supported formats by Pillow's names: pixel formats only, since Pillow would execute EPS in Ghostscript."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_KINDS_BY_HEAD = (
    (b"%PDF", "a PDF; export the page as PNG"),
    (b"%!PS", "an EPS drawing; export it as PNG"),
    (b"\xff\xd8\xff", "a JPEG that is damaged or ends early"),
    (b"\x89PNG", "a PNG that is damaged or ends early"),
)
"""First bytes -> file type and advice."""
_SUBFILE_TYPE = 254
_ICON, _PNG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
_ICON_SIDE_PX = 256
"""Maximum width and height that the directory of an ICO file can state."""


def _readable_formats() -> list[str]:
    """Supported formats that this Pillow build has."""
    Image.init()
    return [name for name in _READ if name in Image.OPEN]


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image of a supported format, as `Image.open`. It is not decoded, unless it is an icon.

    Raises the errors of `Image.open`, and DecompressionBombError for an icon above _ICON_SIDE_PX^2 pixels.
    """
    if _is_large_icon(stream):
        raise Image.DecompressionBombError(f"want at most {_ICON_SIDE_PX} x {_ICON_SIDE_PX} pixels in an icon; scale it down")
    return Image.open(stream, formats=_readable_formats())


def _is_large_icon(stream: BinaryIO) -> bool:
    """Whether a file is an icon (ICO) whose image has more than _ICON_SIDE_PX^2 pixels by the header of the image.

    Pillow decodes an icon when it opens the file, and uses the header, not the size in the icon's directory.
    """
    stream.seek(0)
    if stream.read(len(_ICON)) != _ICON:
        return False
    stream.seek(0)
    offset = IcoFile(stream).entry[0].offset  # sorted: Pillow decodes this one
    stream.seek(offset)
    is_png = stream.read(len(_PNG)) == _PNG
    stream.seek(offset)
    image = PngImageFile(stream) if is_png else DibImageFile(stream)
    n_masks = 0 if is_png else 1  # a bitmap's height includes the mask below it
    return image.width * image.height > (1 + n_masks) * _ICON_SIDE_PX**2


def describe_unreadable(content: bytes) -> str:
    """Describe a file in an unsupported format, with advice if known."""
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return "an empty file"
    if git_lfs.is_pointer(head):
        return git_lfs.DESCRIPTION
    for start, description in _KINDS_BY_HEAD:
        if head.startswith(start):
            return description
    if head[8:12] in (b"WEBP", b"avif", b"avis"):
        return f"a {head[8:12].decode()} image that is damaged or ends early"
    if head[4:8] == b"ftyp":
        return "a HEIC photograph; save it as JPEG" if head[8:12] in _HEIF_BRANDS else "a video, or an image of an unknown format"
    if b"<svg" in head:
        return "an SVG drawing; export it as PNG"
    if head[:5].lower() in (b"<!doc", b"<html"):
        return "a web page, probably a failed download"
    return "not a readable image"


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image that was opened, but not loaded, has 16 bits per value."""
    if image.mode.startswith("I;16"):
        return True
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    raw_modes = [values[0] if isinstance(values, tuple) and values else values for values in arguments]
    return any(isinstance(mode, str) and ";16" in mode for mode in raw_modes)


def to_8_bits(image: Image.Image) -> Image.Image:
    """A loaded image with 16-bit grey values divided by 257, so that white stays white; other images unchanged.

    A value that counts as transparent (PNG) becomes an alpha channel.
    """
    if not image.mode.startswith("I;16"):  # in other modes, Pillow has reduced them
        return image
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray((values // 257).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def with_alpha(image: Image.Image) -> Image.Image:
    """A loaded image with transparency, in mode RGBA."""
    if image.mode == "La":
        return image.convert("LA").convert("RGBA")
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:  # a colour of 16 bits per value
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)  # as Pillow reduces the pixels
    return image.convert("RGBA")


def is_raw_preview(image: Image.Image, content: bytes) -> bool:
    """Whether a TIFF file has camera raw data, of which Pillow would read only the small preview."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return False
    kind = tags.get(_SUBFILE_TYPE, 0)
    is_reduced = isinstance(kind, int) and bool(kind & 1)
    return is_reduced or DNG_VERSION in tags or content[8:10] == b"CR"
