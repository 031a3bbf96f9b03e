"""Image file formats: supported formats, descriptions of other files, and EXIF tags to keep."""

from typing import Any

import numpy as np
from PIL import Image

from emuedit.data import git_lfs

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
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_TIFF_STRUCTURE = (
    *range(254, 269), 273, *range(277, 282), 284, *range(288, 296), 297, 301, *range(317, 348), 400, *range(512, 533),
    700, 32997, 32998, 33723, 34377, 34675, 37724,
)  # fmt: skip
"""Tags of TIFF 6.0 and its supplements that describe the storage of pixels in one file, or contain a packet (XMP, IPTC,
Photoshop, ICC) that may repeat the orientation. Written with other pixels, they make the file unreadable."""


def readable_formats() -> list[str]:
    """Supported formats that this Pillow build has."""
    Image.init()
    return [name for name in _READ if name in Image.OPEN]


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
    """A loaded image with 16-bit grey values divided by 257, so that white stays white; other images unchanged."""
    if not image.mode.startswith("I;16"):  # in other modes, Pillow has reduced them
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    """A loaded image with transparency, in mode RGBA."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def is_raw_preview(image: Image.Image, content: bytes) -> bool:
    """Whether a TIFF file has camera raw data, of which Pillow would read only the small preview."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return False
    kind = tags.get(_SUBFILE_TYPE, 0)
    is_reduced = isinstance(kind, int) and bool(kind & 1)
    return is_reduced or _DNG_VERSION in tags or content[8:10] == b"CR"


def keep_descriptive(exif: Image.Exif) -> None:
    """Remove tags about the file's storage; keep tags about the image, such as camera, date and place."""
    for tag in [tag for tag in exif if tag in _TIFF_STRUCTURE or tag >= _DNG_VERSION]:
        del exif[tag]
