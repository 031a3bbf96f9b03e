"""Captions of the user's images: from a table with paths, and from datasets that contain the images."""

import io
import json
import shutil
from pathlib import Path
from threading import Lock
from typing import Any
from zipfile import ZipFile

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from emuedit.data import image_io, threads
from emuedit.data.caption_images import CaptionImageError, CaptionImages
from emuedit.data.caption_sources import CaptionSourceError
from emuedit.data.file_hashes import hash_file
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Caption, Drop
from emuedit.data.text_tables import BadRow
from emuedit.stages import captions
from emuedit.stages.captions import run
from tests.stages.test_captions import make_params
from tests.stages.workspace import read_files

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
ROWS = [("a red star", "star.jpg"), ("a red star", "ring.png"), ("a blue ring", "ring.png"), ("A red star.", "star.jpg")]


def encode(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write_photos(root: Path) -> None:
    """Two images below photos/, and a pipeline in which the stage depends on them."""
    (root / "photos").mkdir()
    (root / "photos/star.jpg").write_bytes(encode(PIXELS, "JPEG"))
    (root / "photos/ring.png").write_bytes(encode(PIXELS[::-1], "PNG"))
    stage = {"cmd": "", "deps": ["${world.captions}", "photos"], "outs": [captions.OUT]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"captions": stage}}))


def write_table(root: Path, name: str, rows: list[tuple[str, Any]]) -> str:
    frame = pd.DataFrame(rows, columns=["caption", "image"])
    if name.endswith(".csv"):
        frame.to_csv(root / name, index=False)
    elif name.endswith(".jsonl"):
        frame.to_json(root / name, orient="records", lines=True)
    else:
        frame.to_parquet(root / name)
    (root / "params.yaml").write_text(yaml.safe_dump({"world": {"captions": name}}))
    return name


def kept(root: Path) -> list[Caption]:
    return list(read_folder(root / captions.OUT, Caption, verify=True))


def reasons(root: Path) -> list[tuple[int, str]]:
    return [(drop.index, drop.reason) for drop in read_folder(root / captions.OUT, Drop, "dropped-*.parquet")]


@pytest.mark.parametrize("name", ["photos/c.csv", "photos/c.jsonl", "photos/c.parquet"])
def test_a_table_names_an_image_for_each_caption_relative_to_the_table(name: str, tmp_path: Path) -> None:
    write_photos(tmp_path)
    summary = run(make_params(write_table(tmp_path, name, ROWS), image_column="image"), tmp_path)
    assert [(caption.text, caption.image) for caption in kept(tmp_path)] == [
        ("a red star", "photos/star.jpg"), ("a red star", "photos/ring.png"), ("a blue ring", "photos/ring.png"),
    ]  # fmt: skip
    assert all(caption.image_hash == hash_file(tmp_path / str(caption.image)) for caption in kept(tmp_path))
    assert len({caption.id for caption in kept(tmp_path)}) == 3, "the same words of another image are another caption"
    assert reasons(tmp_path) == [(3, "duplicate")]
    assert summary.counts["images"] == 2
    assert not list((tmp_path / captions.OUT).glob("image-*")), "files of the user's are not copied"


def test_without_an_image_column_images_are_ignored(tmp_path: Path) -> None:
    write_photos(tmp_path)
    run(make_params(write_table(tmp_path, "photos/c.csv", ROWS)), tmp_path)
    assert [(caption.text, caption.image) for caption in kept(tmp_path)] == [("a red star", None), ("a blue ring", None)]


def test_rows_without_a_usable_image_are_dropped_with_a_reason(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "photos/broken.jpg").write_bytes(encode(PIXELS, "JPEG")[:300])
    rows = [
        *ROWS[:1],
        ("two red stars", "absent.jpg"),
        ("two blue stars", "broken.jpg"),
        ("two rings", None),
        ("star", "star.jpg"),
        ("three stars", "https://host/star.jpg"),
        ("three rings", "a\0b"),
        ("four rings", "a" * 999),
        ("four stars", "."),
    ]
    run(make_params(write_table(tmp_path, "photos/c.jsonl", rows), image_column="image"), tmp_path)
    first = [(1, "no_image"), (2, "unreadable_image"), (3, "no_image"), (4, "too_short")]
    assert reasons(tmp_path) == [*first, *((n, "no_image") for n in range(5, 9))]
    drops = list(read_folder(tmp_path / captions.OUT, Drop, "dropped-*.parquet"))
    assert drops[1].subject.startswith("two blue stars: want an image")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    names, lock, check_image = list[str](), Lock(), image_io.check_image

    def check(file: Path) -> None:
        with lock:
            names.append(file.name)
        check_image(file)

    monkeypatch.setattr(image_io, "check_image", check)
    return names


def test_only_images_of_new_usable_captions_are_decoded_and_each_content_once(tmp_path: Path, opened: list[str]) -> None:
    write_photos(tmp_path)
    for name in ("short", "long", "french", "copy"):
        shutil.copy(tmp_path / "photos/star.jpg", tmp_path / f"photos/{name}.jpg")
    for number, name in enumerate(("short", "long", "french")):
        (tmp_path / f"photos/{name}.jpg").write_bytes(encode(PIXELS[number:], "JPEG"))
    rows = [
        ("a red star on a wall", "star.jpg"), ("star", "short.jpg"), ("one two three four five six seven", "long.jpg"),
        ("a red star on a wall", "copy.jpg"), ("un chien sur un canapé", "french.jpg"), ("a red star on a wall.", "star.jpg"),
        ("a blue ring on a wall", "ring.png"), ("the blue ring on the wall", "ring.png"), ("", "absent.jpg"),
    ]  # fmt: skip
    source = write_table(tmp_path, "photos/c.csv", rows)
    run(make_params(source, image_column="image", languages=("en",), max_words=6), tmp_path)
    assert opened == ["star.jpg", "ring.png"]
    assert [caption.index for caption in kept(tmp_path)] == [0, 6, 7]
    drops = [(1, "too_short"), (2, "too_long"), (3, "duplicate"), (4, "other_language"), (5, "duplicate"), (8, "empty")]
    assert reasons(tmp_path) == drops


def test_a_caption_whose_image_is_unreadable_does_not_make_the_next_one_a_duplicate(tmp_path: Path) -> None:
    write_photos(tmp_path)
    broken = encode(PIXELS, "JPEG")[:300]
    for name in ("broken.jpg", "again.jpg"):
        (tmp_path / "photos" / name).write_bytes(broken)
    rows = [("a red star", "broken.jpg"), ("a red star", "again.jpg"), ("a red star", "star.jpg")]
    run(make_params(write_table(tmp_path, "photos/c.csv", rows), image_column="image", rows_per_shard=3), tmp_path)
    assert reasons(tmp_path) == [(0, "unreadable_image"), (1, "unreadable_image")]
    assert [caption.image for caption in kept(tmp_path)] == ["photos/star.jpg"]


def test_the_number_of_threads_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path)
    (tmp_path / "photos/broken.jpg").write_bytes(encode(PIXELS, "JPEG")[:300])
    rows: list[tuple[str, Any]] = [*ROWS, ("two stars", "broken.jpg"), ("two rings", "absent.jpg")]
    for number in range(12):
        (tmp_path / f"photos/{number}.png").write_bytes(encode(PIXELS[number // 4 :], "PNG"))
        rows.append((f"image number {number}", f"{number}.png"))
    params = make_params(write_table(tmp_path, "photos/c.csv", rows), image_column="image", rows_per_shard=9)
    contents = []
    for n_cores in (1, 8):
        monkeypatch.setattr(threads, "available_cores", lambda n_cores=n_cores: n_cores)
        run(params, tmp_path)
        contents.append(read_files(tmp_path / captions.OUT))
    assert contents[0] == contents[1]


def test_progress_advances_with_each_image_and_reaches_the_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path)
    amounts: list[float] = []

    def record(progress: captions.Progress, amount: float = 1, note: str | None = None) -> None:
        if progress.label == "captions":  # and not that of the hashes
            amounts.append(amount)

    monkeypatch.setattr(captions.Progress, "advance", record)
    rows = [*ROWS, ("star", "star.jpg"), ("two rings", "absent.jpg")]
    run(make_params(write_table(tmp_path, "photos/c.csv", rows), image_column="image", rows_per_shard=100), tmp_path)
    assert sum(amounts) == len(rows)
    assert amounts.count(1) >= 2, "one step for each decoded image"


def test_a_changed_image_changes_the_caption_and_the_key_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path)
    params = make_params(write_table(tmp_path, "photos/c.csv", ROWS[:1]), image_column="image")
    folders: list[Path] = []
    scratch_folder = captions.scratch_folder

    def record_scratch(*arguments: Any) -> Path:
        folders.append(scratch_folder(*arguments))
        return folders[-1]

    monkeypatch.setattr(captions, "scratch_folder", record_scratch)
    run(params, tmp_path)
    (before,) = kept(tmp_path)
    (tmp_path / "photos/star.jpg").write_bytes(encode(PIXELS[:8], "JPEG"))
    run(params, tmp_path)
    (after,) = kept(tmp_path)
    assert (after.text, after.image) == (before.text, before.image)
    assert after.id != before.id
    assert folders[0] != folders[1]


def test_images_outside_the_deps_of_the_stage_are_an_error(tmp_path: Path) -> None:
    """DVC would not notice that they change."""
    write_photos(tmp_path)
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    source = write_table(tmp_path, "photos/c.csv", [("a red star", "../more/star.jpg")])
    with pytest.raises(CaptionImageError, match=r"want the images of .* below a dep of the stage captions, got .*more/star.jpg"):
        run(make_params(source, image_column="image"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file.parquet", "dataset", "saved", "hub.yaml"])
def test_images_inside_a_dataset_are_written_beside_the_captions(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    star, ring = encode(PIXELS, "JPEG"), encode(PIXELS[::-1], "PNG")
    texts, images = ["a red star", "star", "a blue ring"], [star, encode(PIXELS[:9], "PNG"), ring]
    values = [{"bytes": content, "path": f"{number}.x"} for number, content in enumerate(images)]
    features = datasets.Features({"photo": datasets.Image(), "caption": datasets.Value("string"), "n": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"photo": values, "caption": texts, "n": [0, 1, 2]}, features)
    if kind == "file.parquet":
        rows.to_parquet(tmp_path / kind)
    elif kind == "dataset":
        rows.to_parquet(tmp_path / kind / "train.parquet")
    elif kind == "saved":
        rows.save_to_disk(tmp_path / kind)
    else:
        (tmp_path / kind).write_text(f"captions: {{dataset: owner/name, config: null, revision: {'ab' * 20}}}\n")
        monkeypatch.setattr(datasets, "load_dataset", lambda **_: rows.to_iterable_dataset())
    run(make_params(kind, image_column="photo"), tmp_path)
    first, second = kept(tmp_path)
    assert (first.text, second.text) == ("a red star", "a blue ring")
    for caption, content in ((first, star), (second, ring)):
        assert caption.image == f"{captions.OUT}/image-{caption.image_hash}.x"
        assert (tmp_path / caption.image).read_bytes() == content
        assert hash_file(tmp_path / caption.image) == caption.image_hash
        assert Path(caption.image).name in read_summary(tmp_path / captions.OUT).shards
    assert len(list((tmp_path / captions.OUT).glob("image-*"))) == 2, "the image of the caption that was dropped is not kept"


def test_a_folder_of_images_with_metadata_is_a_source(tmp_path: Path) -> None:
    """The format `imagefolder` of `datasets`, which DVC hashes as one dep."""
    write_photos(tmp_path)
    rows = [{"file_name": name, "caption": text} for text, name in (ROWS[0], ROWS[2])]
    (tmp_path / "photos/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(make_params("photos", image_column="image"), tmp_path)
    first, second = kept(tmp_path)
    assert (first.text, second.text) == ("a red star", "a blue ring")
    pixels = image_io.read_image(tmp_path / str(second.image)).pixels
    assert np.array_equal(pixels, PIXELS[::-1])


@pytest.mark.slow
def test_a_folder_with_a_zip_of_images_is_a_source(tmp_path: Path) -> None:
    """`datasets` streams such images as a path without bytes: zip://0.png::/folder/train.zip."""
    contents = [encode(PIXELS[number:], "PNG") for number in range(3)]
    (tmp_path / "photos").mkdir()
    with ZipFile(tmp_path / "photos/train.zip", "w") as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.png", content)
        archive.writestr("metadata.csv", "file_name,caption\n0.png,a red star\n1.png,a blue ring\n2.png,a green cross\n")
    run(make_params("photos", image_column="image"), tmp_path)
    assert [caption.text for caption in kept(tmp_path)] == ["a red star", "a blue ring", "a green cross"]
    assert [(tmp_path / str(caption.image)).read_bytes() for caption in kept(tmp_path)] == contents
    assert all(str(caption.image).endswith(".png") for caption in kept(tmp_path))


def test_images_that_a_dataset_names_but_does_not_have(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("0.png", encode(PIXELS, "PNG"))
    images = CaptionImages("image", tmp_path, tmp_path, tmp_path, "out", [tmp_path])
    for name in (f"zip://1.png::{tmp_path}/train.zip", f"zip://0.png::{tmp_path}/absent.zip"):
        assert isinstance(images.file_of({"bytes": None, "path": name}, "a star"), BadRow)
    (tmp_path / "train.zip").write_bytes(b"PK")
    with pytest.raises(CaptionImageError, match=r"want the image zip://0.png::.*, got none that can be read"):
        images.file_of({"bytes": None, "path": f"zip://0.png::{tmp_path}/./train.zip"}, "a star")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.txt", r"want a table or a dataset with the column 'image' of captions.image_column, got .*c.txt"),
        ("c.csv", r"want key 'image' in .*, got \['caption', 'picture'\] in row 1; set captions.image_column"),
    ],
)
def test_a_source_without_the_image_column_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("caption,picture\na red star,star.jpg\n")
    with pytest.raises(CaptionSourceError, match=message):
        run(make_params(name, image_column="image"), tmp_path)
