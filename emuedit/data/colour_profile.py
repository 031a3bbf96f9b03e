"""Convert colours between the space of an ICC profile and sRGB with Little CMS (Pillow's ImageCms)."""

import io
from typing import Any

from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image in sRGB, and a note on the conversion; unchanged and without a note if it is already sRGB.

    profile: the bytes of an ICC profile, or empty. An image without a profile is assumed to be sRGB, as is one with an unusable
    profile, which is noted.
    """
    if not profile:
        return image, "CMYK converted to RGB without a colour profile" if image.mode == "CMYK" else ""
    source = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(opened).strip() or "its colour profile"
        if "srgb" in name.lower() or source.mode not in ("RGB", "CMYK"):
            return image, ""
        converted = ImageCms.profileToProfile(source, opened, _srgb(), renderingIntent=_INTENT, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return image, f"its colour profile is unusable ({error}); assumed sRGB"
    assert converted is not None  # None only with inPlace
    return converted, f"{name} converted to sRGB"


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image in the RGB space of a profile. Raises ImageCms.PyCMSError for an unusable profile."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, _srgb(), opened, renderingIntent=_INTENT, outputMode="RGB")
    assert converted is not None  # None only with inPlace
    return converted


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
