"""Addresses and names of images in the rows of a dataset, which may be anybody's."""

import gzip
from pathlib import Path
from zipfile import ZipFile

import pytest
from datasets.utils import file_utils

from emuedit.data import caption_images
from emuedit.data.caption_images import CaptionImageError, CaptionImages
from emuedit.data.text_tables import BadRow
from tests.stages.test_caption_images import PIXELS, encode

PNG = encode(PIXELS, "PNG")


@pytest.fixture
def images(tmp_path: Path) -> CaptionImages:
    """A project with a dataset in the dep `photos`, beside another folder."""
    for name in ("photos", "scratch", "private"):
        (tmp_path / name).mkdir()
    for folder in ("photos", "private"):
        with ZipFile(tmp_path / folder / "p.zip", "w") as archive:
            archive.writestr("s.png", PNG)
    (tmp_path / "photos/s.png.gz").write_bytes(gzip.compress(PNG))
    (tmp_path / "photos/link.zip").symlink_to("../private/p.zip")
    return CaptionImages("image", tmp_path / "photos", tmp_path, tmp_path / "scratch", "out", [tmp_path / "photos"])


@pytest.mark.parametrize(
    "address",
    [
        "https://host/0.png", "HTTP://host/0.png", "http://host/0.png::", "http://host/0.png::zip", "http://host/0.png::hf://a/b",
        "zip://s.png::http://host/p.zip", "zip://s.png::HTTPS://host/p.zip", "filecache://s.png::http://host/0.png",
        "ftp://host/0.png", "s3://bucket/0.png", "webhdfs://host/0.png", "sftp://host/0.png", "github://a:b@main/0.png",
        "file://{root}/photos/s.png.gz", "local://{root}/photos/p.zip", "dir://s.png::file://{root}/photos",
        "zip://s.png::file://{root}/photos/p.zip", "dir://s.png::{root}/photos", "zip://s.png", "zip://s.png::{root}/photos/\0.zip",
        "zip://s.png::webhdfs://host/a::{root}/photos/p.zip", "ZIP://s.png::{root}/photos/p.zip",
    ],
)  # fmt: skip
def test_an_address_that_no_dep_and_no_commit_pins_is_not_opened(
    address: str, images: CaptionImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def xopen(*arguments: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(file_utils, "xopen", xopen)
    row = images.file_of({"bytes": None, "path": address.format(root=tmp_path)}, "a star")
    assert isinstance(row, BadRow)
    assert row.reason == "no_image"


@pytest.mark.parametrize("archive", ["private/p.zip", "photos/link.zip", "photos/../private/p.zip"])
def test_an_archive_outside_the_deps_is_an_error(
    archive: str, images: CaptionImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_utils, "xopen", None)
    with pytest.raises(CaptionImageError, match=r"below a dep of the stage captions, got .*\.zip; add their folder"):
        images.file_of({"bytes": None, "path": f"zip://s.png::{tmp_path}/{archive}"}, "a star")


@pytest.mark.parametrize("address", ["zip://s.png::{root}/photos/p.zip", "gzip://s.png::{root}/photos/s.png.gz"])
def test_an_archive_below_a_dep_is_read_up_to_a_limit(
    address: str, images: CaptionImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"bytes": None, "path": address.format(root=tmp_path)}
    monkeypatch.setattr(caption_images, "_MAX_BYTES", len(PNG))
    file = images.file_of(value, "a star")
    assert isinstance(file, Path)
    assert (file.read_bytes(), file.suffix) == (PNG, ".png")
    monkeypatch.setattr(caption_images, "_MAX_BYTES", len(PNG) - 1)
    row = images.file_of(value, "a star")
    assert isinstance(row, BadRow)
    assert row.reason == "unreadable_image"


def test_the_hub_is_asked_for_images_of_a_dataset(images: CaptionImages, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def xopen(address: str, mode: str) -> None:
        opened.append(address)
        raise FileNotFoundError(address)

    monkeypatch.setattr(file_utils, "xopen", xopen)
    addresses = ["hf://datasets/owner/name@abc/0.png", "zip://0.png::hf://datasets/owner/name@abc/train.zip"]
    for address in addresses:
        assert isinstance(images.file_of({"bytes": None, "path": address}, "a star"), BadRow)
    assert opened == addresses


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.PNG", ".PNG"), ("img.jpg?X-Amz-Signature=" + "0" * 300, ""), ("a." + "a" * 300, ""), ("a.p\0ng", ""),
        ("a.\udc80", ""), ("a", ""), ("a.jpg\n", ""),
    ],
)  # fmt: skip
def test_the_suffix_of_a_name_is_kept_if_it_is_one(name: str, suffix: str, images: CaptionImages) -> None:
    file = images.file_of({"bytes": PNG, "path": name}, "a star")
    assert isinstance(file, Path)
    assert (file.read_bytes(), file.suffix) == (PNG, suffix)
