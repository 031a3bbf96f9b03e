import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from emuedit.data import colour_profile, image_io
from tests.data import icc_profiles

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def by_little_cms(picture: Image.Image, profile: bytes) -> np.ndarray:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(
        picture, opened, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
    )
    return np.asarray(converted)


def test_a_wide_gamut_picture_is_edited_in_srgb_and_keeps_its_own_values(tmp_path: Path) -> None:
    profile = icc_profiles.display_p3()  # once: a profile states the second at which it was made
    (tmp_path / "in.png").write_bytes(encode(Image.fromarray(COLOURS), icc_profile=profile))
    picture = image_io.read_image(tmp_path / "in.png")
    assert picture.notes == ("Display P3 converted to sRGB",)
    assert not np.array_equal(picture.pixels, COLOURS)
    edited = picture.pixels.copy()
    edited[:4, :4] = (200, 40, 40)
    image_io.write_image(tmp_path / "out.png", edited, picture)
    with Image.open(tmp_path / "out.png") as written:
        values = np.asarray(written)
        assert written.info["icc_profile"] == profile
    np.testing.assert_array_equal(values[4:], COLOURS[4:])
    np.testing.assert_array_equal(values[:, 4:], COLOURS[:, 4:])
    again = image_io.read_image(tmp_path / "out.png")
    assert np.abs(again.pixels[:4, :4].astype(int) - (200, 40, 40)).max() <= 2


def test_an_srgb_profile_changes_nothing() -> None:
    picture = image_io.read_image(encode(Image.fromarray(COLOURS), icc_profile=icc_profiles.srgb()))
    np.testing.assert_array_equal(picture.pixels, COLOURS)
    assert (picture.notes, picture.metadata.profile) == ((), b"")


def test_a_linear_profile_is_converted_although_its_name_says_srgb() -> None:
    profile = icc_profiles.linear_srgb()
    picture = image_io.read_image(encode(Image.new("RGB", (9, 8), (55, 55, 55)), icc_profile=profile))
    assert (picture.pixels == 128).all()
    assert (picture.notes, picture.metadata.profile) == (("Linear sRGB converted to sRGB",), profile)


def test_a_broken_profile_is_told() -> None:
    picture = image_io.read_image(encode(Image.new("RGB", (9, 8), "red"), icc_profile=b"no profile"))
    assert "its colour profile is unusable" in picture.notes[0]
    assert (picture.pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("name", ["", "srgb", "display_p3"])
def test_unchanged_pixels_keep_their_transparency_and_changed_ones_are_opaque(name: str, suffix: str, tmp_path: Path) -> None:
    profile = getattr(icc_profiles, name)() if name else b""
    source = np.dstack([np.full((8, 9, 3), (60, 90, 30), np.uint8), np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))])
    picture = image_io.read_image(encode(Image.fromarray(source), icc_profile=profile))
    edited = picture.pixels.copy()
    edited[2:4, 2:4] = (200, 60, 60)
    assert image_io.write_image(tmp_path / f"out{suffix}", edited, picture) == ()
    with Image.open(tmp_path / f"out{suffix}") as written:
        pixels = np.asarray(written)
        assert written.info.get("icc_profile", b"") == (profile if name == "display_p3" else b"")
    changed = Image.new("RGB", (1, 1), (200, 60, 60))
    if name == "display_p3":
        changed = colour_profile.from_srgb(changed, profile)
    source[2:4, 2:4] = (*np.asarray(changed)[0, 0], 255)
    np.testing.assert_array_equal(pixels, source)


def test_the_profile_of_a_palette_applies_to_its_colours(tmp_path: Path) -> None:
    palette, profile = Image.fromarray(COLOURS).quantize(16), icc_profiles.display_p3()
    colours = palette.convert("RGB")
    picture = image_io.read_image(encode(palette, icc_profile=profile))
    np.testing.assert_array_equal(picture.pixels, by_little_cms(colours, profile))
    assert picture.notes == ("Display P3 converted to sRGB",)
    image_io.write_image(tmp_path / "out.png", picture.pixels, picture)
    with Image.open(tmp_path / "out.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(colours))
        assert written.info["icc_profile"] == profile


def test_the_grey_profile_of_a_grey_picture_applies_and_is_not_written_with_rgb(tmp_path: Path) -> None:
    grey, profile = Image.fromarray(COLOURS).convert("L"), icc_profiles.grey(1.8)
    picture = image_io.read_image(encode(grey, icc_profile=profile))
    np.testing.assert_array_equal(picture.pixels, by_little_cms(grey, profile))
    assert picture.notes == ("Grey converted to sRGB",)
    image_io.write_image(tmp_path / "out.png", picture.pixels, picture)
    with Image.open(tmp_path / "out.png") as written:
        np.testing.assert_array_equal(np.asarray(written), picture.pixels)
        assert "icc_profile" not in written.info


def test_the_colour_profile_of_a_grey_picture_applies_to_its_rgb_values() -> None:
    profile = icc_profiles.linear_srgb()
    picture = image_io.read_image(encode(Image.new("L", (9, 8), 55), icc_profile=profile))
    assert (picture.pixels == 128).all()
    assert (picture.notes, picture.metadata.profile) == (("Linear sRGB converted to sRGB",), profile)


def test_transparent_grey_with_a_grey_profile_is_written_in_srgb(tmp_path: Path) -> None:
    source, profile = Image.new("LA", (9, 8), (100, 40)), icc_profiles.grey(1.8)
    picture = image_io.read_image(encode(source, icc_profile=profile))
    assert picture.notes == ("transparency composited on white", "Grey converted to sRGB")
    image_io.write_image(tmp_path / "out.png", picture.pixels, picture)
    expected = by_little_cms(source.getchannel("L"), profile)[0, 0]
    with Image.open(tmp_path / "out.png") as written:
        assert (np.asarray(written) == (*expected, 40)).all()


@pytest.mark.parametrize("suffix", image_io.WRITABLE_SUFFIXES)
def test_a_profile_without_a_way_back_is_replaced_by_srgb(suffix: str, tmp_path: Path) -> None:
    picture = image_io.read_image(encode(Image.fromarray(COLOURS), "TIFF", icc_profile=icc_profiles.scanner()))
    assert picture.notes == ("Scanner converted to sRGB; its profile cannot be written again",)
    edited = picture.pixels.copy()
    edited[0, 0] ^= 1
    image_io.write_image(tmp_path / f"out{suffix}", edited, picture)
    again = image_io.read_image((tmp_path / f"out{suffix}").read_bytes())
    assert again.notes == ()
    if suffix not in (".jpg", ".jpeg"):
        np.testing.assert_array_equal(again.pixels, edited)
    np.testing.assert_array_equal(image_io.read_image(image_io.to_png(edited, picture)).pixels, edited)


def test_a_profile_is_described_once_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    profile, calls = icc_profiles.linear_srgb(), list[bytes]()
    describe = ImageCms.getProfileDescription
    monkeypatch.setattr(ImageCms, "getProfileDescription", lambda opened: calls.append(b"") or describe(opened))
    colour_profile._describe.cache_clear()
    for _ in range(3):
        colour_profile.to_srgb(Image.new("RGB", (9, 8)), profile)
    assert len(calls) == 1
