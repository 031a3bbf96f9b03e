"""Convert colours between the space of an ICC profile and sRGB with Little CMS (Pillow's ImageCms)."""

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_MAX_SRGB_DIFFERENCE = 2
"""A profile that changes the sampled colours by at most this many of 255 levels is sRGB. Ours: published sRGB profiles change
them by 0 or 1 (rounded tables), Rec. 709, the nearest other space, by 16."""
_GREY_MODES = ("1", "L", "LA", "La")
"""Modes of an image without colour, for which a profile may be grey."""


class SrgbImage(NamedTuple):
    """An image in sRGB."""

    image: Image.Image
    """Mode RGB if it was converted by a profile, else the image as it was."""
    note: str
    """On the conversion; empty without one."""
    in_profile: Image.Image | None
    """The image before the conversion, mode RGB; None if the profile cannot be written with an RGB image, or was not needed."""


class _Profile(NamedTuple):
    """What an ICC profile is for."""

    name: str
    is_srgb: bool
    """By its effect on colours; its name may be wrong, as in "Linear sRGB"."""
    is_writable: bool
    """Whether it is of RGB and converts from sRGB too, which the profile of a scanner may not."""


def is_grey(image: Image.Image) -> bool:
    """Whether an image has a mode without colour."""
    return image.mode in _GREY_MODES


def to_srgb(image: Image.Image, profile: bytes) -> SrgbImage:
    """Convert an image with 8 bits per value to sRGB; unchanged and without a note if it is already sRGB.

    profile: the bytes of an ICC profile, or empty. RGB profiles apply to images of every mode but CMYK and LAB, after their
    conversion to RGB; grey profiles apply to grey images and CMYK profiles to CMYK images. An alpha channel is dropped by a
    conversion. An image without a profile is assumed to be sRGB, as is one with an unusable profile, which is noted.
    """
    if not profile or image.mode == "LAB":  # Pillow converts LAB to sRGB itself
        return SrgbImage(image, "CMYK converted to RGB without a colour profile" if image.mode == "CMYK" else "", None)
    try:
        opened = _open(profile)
        is_grey_profile = opened.profile.xcolor_space.strip() == "GRAY"
        mode = "CMYK" if image.mode == "CMYK" else "L" if is_grey_profile and is_grey(image) else "RGB"
        described = _describe(profile, mode)
        if described.is_srgb:
            return SrgbImage(image, "", None)
        source = image.convert(mode)
        converted = _convert(source, opened, _srgb())
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return SrgbImage(image, f"its colour profile is unusable ({error}); assumed sRGB", None)
    reason = "; its profile cannot be written again" if mode == "RGB" and not described.is_writable else ""
    return SrgbImage(converted, f"{described.name} converted to sRGB{reason}", source if described.is_writable else None)


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image in the RGB space of a profile. Raises ImageCms.PyCMSError for an unusable profile."""
    return _convert(image, _srgb(), _open(profile))


@lru_cache(maxsize=16)
def _describe(profile: bytes, mode: str) -> _Profile:
    """Describe a profile by its effect on images of a mode. Raises ImageCms.PyCMSError for an unusable one."""
    opened = _open(profile)
    name = ImageCms.getProfileDescription(opened).strip() or "its colour profile"
    samples = _sample_colours().convert(mode)
    converted = np.asarray(_convert(samples, opened, _srgb()), np.int16)
    difference = np.abs(converted - np.asarray(samples.convert("RGB"))).max()
    return _Profile(name, mode != "CMYK" and bool(difference <= _MAX_SRGB_DIFFERENCE), mode == "RGB" and _is_writable(profile))


def _is_writable(profile: bytes) -> bool:
    try:
        from_srgb(Image.new("RGB", (1, 1)), profile)
    except ImageCms.PyCMSError:
        return False
    return True


def _sample_colours() -> Image.Image:
    """All 256 greys, and a grid of 9 x 9 x 9 colours with the primaries, in one row."""
    greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
    levels = np.linspace(0, 255, 9)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    row: npt.NDArray[np.uint8] = np.concatenate([greys, grid])[None].astype(np.uint8)
    return Image.fromarray(row)


def _convert(image: Image.Image, source: Any, target: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, target, renderingIntent=_INTENT, outputMode="RGB")
    assert converted is not None  # None only with inPlace
    return converted


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
