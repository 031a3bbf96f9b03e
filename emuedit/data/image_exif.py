"""EXIF data of images: apply the orientation, and copy the tags that describe the image."""

from typing import Any

from PIL import ExifTags, Image

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> transposition that makes the image upright; 1 is upright."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
DNG_VERSION = 50706
"""The first of the tags of DNG, the format of camera raw files."""
_TIFF_STRUCTURE = (
    *range(254, 269), 273, *range(277, 282), 284, *range(288, 296), 297, 301, *range(317, 348), 400, *range(512, 533),
    700, 32997, 32998, 33723, 34377, 34675, 37724,
)  # fmt: skip
"""Tags of TIFF 6.0 and its supplements that describe the storage of pixels in one file, or contain a packet (XMP, IPTC,
Photoshop, ICC) that may repeat the orientation. Written with other pixels, they make the file unreadable."""


def swaps_sides(image: Image.Image) -> bool:
    """Whether the EXIF orientation of an opened image swaps its width and height. Raises errors of Pillow's parser."""
    return image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS and image.format != "TIFF"  # Pillow has swapped those of a TIFF


def turn_upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes]:
    """Load an image and apply its EXIF orientation.

    Returns the upright image, and its EXIF data without the orientation and without tags about the file's storage. Adds notes
    on a rotation and on dropped data. The image itself keeps its pixels and EXIF data.
    """
    orientation_of_tiff = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1)  # Pillow rotates a TIFF when it loads it
    image.load()
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises many classes: struct.error, SyntaxError, KeyError, ...
        notes.append("its EXIF data cannot be read and were dropped")
        return image, b""
    upright = image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
    if orientation in _TURNS or orientation_of_tiff in _TURNS:
        notes.append("rotated by its EXIF orientation")
    try:
        descriptive = _descriptive_tags(exif)
        return upright, descriptive.tobytes() if len(descriptive) else b""
    except Exception:  # e.g. struct.error for a negative rational
        notes.append("its EXIF data cannot be written and were dropped")
        return upright, b""


def _descriptive_tags(exif: Image.Exif) -> Image.Exif:
    """A copy of the tags about the image, such as camera, date and place, without the orientation.

    `getexif` returns the object that the image itself uses, so tags are not deleted from it.
    """
    copied = Image.Exif()
    copied.endian = exif.endian
    for tag in exif:
        if tag != _ORIENTATION and tag not in _TIFF_STRUCTURE and tag < DNG_VERSION:
            copied[tag] = _directory(exif, tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else exif[tag]
    return copied


def _directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    """The tags of a directory, of which `exif` has only the position in its file, or that a program has set as a dict."""
    if isinstance(exif[tag], dict):
        return dict(exif[tag])
    directory = dict(exif.get_ifd(tag))
    if tag == ExifTags.IFD.Exif and ExifTags.IFD.Interop in directory:
        directory[ExifTags.IFD.Interop] = exif.get_ifd(ExifTags.IFD.Interop)
    return directory
