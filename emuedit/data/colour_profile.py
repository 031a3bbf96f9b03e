"""Colours between the space of an ICC profile and sRGB, by Little CMS (Pillow's ImageCms)."""

import io
from typing import Any

from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The image in sRGB, and a note on what was done; the image itself, and no note, where it is in sRGB already.

    profile: the bytes of an ICC profile, or empty. An image without a profile counts as sRGB; one whose profile cannot be used is
    taken as it is, and the note says so.
    """
    if not profile:
        return image, "CMYK made RGB, without its colour profile" if image.mode == "CMYK" else ""
    source = image.convert("RGB") if image.mode == "RGBA" else image
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(opened).strip() or "its colour profile"
        if "srgb" in name.lower() or source.mode not in ("RGB", "CMYK"):
            return image, ""
        converted = ImageCms.profileToProfile(source, opened, _srgb(), renderingIntent=_INTENT, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        return image, f"its colour profile cannot be used ({error}); taken as sRGB"
    assert converted is not None  # only with inPlace
    return converted, f"{name} made sRGB"


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image in the RGB space of a profile. Raises ImageCms.PyCMSError for a profile that cannot be used."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, _srgb(), opened, renderingIntent=_INTENT, outputMode="RGB")
    assert converted is not None  # only with inPlace
    return converted


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
