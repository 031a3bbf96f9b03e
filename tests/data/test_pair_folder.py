"""Import of people's own images before and after an edit, from the folders that `emuedit learn` reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit import cli
from emuedit.data import file_hashes
from emuedit.data.example_folder import ExampleEdit, read_examples
from emuedit.data.formats import pair_folder, pair_import
from emuedit.data.formats.pair_import import CARD
from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder, read_summary, scratch_folder
from emuedit.data.records import Drop, Pair
from tests.stages.workspace import read_files


def write_picture(file: Path, colour: int, size: tuple[int, int] = (24, 16)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(file)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pairs in before/ and after/; the first two have the same image before the edit."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        write_picture(tmp_path / "mine/before" / name, 10 if number < 2 else 50)
        write_picture(tmp_path / "mine/after" / name, 100 + number)
    return tmp_path / "mine"


def import_folder(*options: str) -> list[Pair]:
    assert cli.main(["import", "folder", "mine", "imported/mine", "--task", "local", *options]) == 0
    return list(read_folder(Path("imported/mine"), Pair, verify=True))


def test_two_folders_of_equal_names(pictures: Path) -> None:
    pairs = import_folder("--instruction", "make it lighter", "--instruction", "lighten it", "--size", "8")
    assert [pair.instruction for pair in pairs] == ["make it lighter", "lighten it", "make it lighter"]
    assert [decode_png(pair.target)[0, 0, 0] for pair in pairs] == [100, 101, 102]
    assert decode_png(pairs[0].source).shape == (8, 8, 3)
    assert {(pair.task, pair.model_revision) for pair in pairs} == {("local", "images of a folder")}
    assert pairs[2].recipe["image"] == "c.png"
    families = [pair.parent_ids[1] for pair in pairs]
    assert families[0] == families[1] != families[2], "pairs of one image are held out together"
    assert "3 pairs of `images of a folder`" in Path("imported/mine", CARD).read_text()


def test_a_table_with_captions(pictures: Path) -> None:
    rows = [
        "image,result,instruction,input_caption,output_caption",
        'before/a.png,after/a.png,"lighten, please",a wall,"a wall, lit"',
    ]
    (pictures / "edits.csv").write_text("\n".join(rows))
    (pair,) = import_folder()
    assert (pair.instruction, pair.source_caption, pair.target_caption) == ("lighten, please", "a wall", "a wall, lit")
    (pictures / "edits.csv").write_text("\n".join(rows).replace("a wall,", "a room,"))
    (pair,) = import_folder()
    assert pair.source_caption == "a room", "another table is not taken for the earlier one"


def test_unusable_images_cost_one_drop_each(pictures: Path) -> None:
    (pictures / "before/a.png").write_bytes(b"no picture")
    write_picture(pictures / "after/b.png", 9, (16, 24))
    assert len(import_folder("--instruction", "lighten it")) == 1
    drops = list(read_folder(Path("imported/mine"), Drop, "dropped-*.parquet"))
    assert [(drop.reason, drop.index) for drop in drops] == [("source_unreadable", 0), ("sizes_differ", 1)]
    assert read_summary(Path("imported/mine")).counts["dropped_sizes_differ"] == 1


def test_what_is_missing_is_named(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--task", "local"], "want an instruction for the examples in mine: --instruction 'what was done'"),
        (["--instruction", "x"], "want one origin for the tasks of folder, got the dataset itself; add --task or --router"),
        (["--instruction", "x", "--task", "local", "--files", "*.png"], "want --files for Parquet files only, got it for folder"),
    ):
        assert cli.main(["import", "folder", "mine", "out", *options]) == 2
        assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_many_images_are_imported_in_order(pictures: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(70):
        for part in ("before", "after"):
            noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(noise).save(pictures / part / f"n{number:03d}.png")
    pairs = import_folder("--instruction", "x")
    assert [pair.recipe["image"] for pair in pairs] == [
        "a.png",
        "b.png",
        "c.png",
        *(f"n{number:03d}.png" for number in range(70)),
    ]


def write_pictures(pictures: Path, n: int) -> None:
    for number in range(n):
        for part in ("before", "after"):
            write_picture(pictures / part / f"n{number:03d}.png", number % 256, (8 + number // 256, 8))


@pytest.mark.slow
def test_finished_shards_are_not_read_again(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(pictures, 9)  # 12 pairs
    monkeypatch.setattr(pair_import, "ROWS_PER_SHARD", 5)
    monkeypatch.setattr(pair_folder, "_ROWS_PER_BATCH", 2)
    uninterrupted = import_folder("--instruction", "x")
    contents = read_files(Path("imported/mine"))
    assert len(list(Path("imported/mine").glob("shard-*.parquet"))) == 3
    read, read_names, stop_at = pair_folder._row, list[str](), 8

    def read_or_stop(example: ExampleEdit, image_hash: str) -> dict[str, object]:
        read_names.append(example.before.name)
        if len(read_names) == stop_at:
            raise KeyboardInterrupt
        return read(example, image_hash)

    monkeypatch.setattr(pair_folder, "_row", read_or_stop)
    assert cli.main(["import", "folder", "mine", "imported/mine", "--task", "local", "--instruction", "x"]) == 130
    read_names.clear()
    capsys.readouterr()
    stop_at = -1
    assert import_folder("--instruction", "x") == uninterrupted
    assert read_names == [f"n{number:03d}.png" for number in range(2, 9)], "the first five pairs are in a finished shard"
    assert "import folder: 12/12 pairs, 100%" in capsys.readouterr().err.splitlines()
    assert read_files(Path("imported/mine")) == contents


@pytest.mark.slow
def test_shards_are_limited_in_rows_and_in_bytes_of_images_that_keep_their_size(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = read_examples(pictures, ["x"])
    assert list(pair_folder.split_into_shards(examples, 2, float("inf"))) == [(0, 2), (2, 3)]
    assert list(pair_folder.split_into_shards(examples, 9, 1)) == [(0, 1), (1, 2), (2, 3)], "a large pair has its own shard"
    assert not list(pair_folder.split_into_shards([], 9, 1))
    monkeypatch.setattr(pair_folder, "BYTES_PER_SHARD", 1)
    import_folder("--instruction", "x")
    assert len(list(Path("imported/mine").glob("shard-*.parquet"))) == 3
    import_folder("--instruction", "x", "--size", "8")
    assert len(list(Path("imported/mine").glob("shard-*.parquet"))) == 1


def test_each_file_is_hashed_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, names = file_hashes._read, list[Path]()

    def record(file: Path, *others: Any) -> str:
        names.append(file)
        return read(file, *others)

    monkeypatch.setattr(file_hashes, "_read", record)
    import_folder("--instruction", "x")
    assert sorted(file for file in names if file.suffix == ".png") == sorted(Path("mine").rglob("*.png"))


@pytest.mark.slow
def test_a_text_beside_the_images_is_part_of_the_key(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def record(*arguments: Any) -> Path:
        folders.append(scratch_folder(*arguments))
        return folders[-1]

    monkeypatch.setattr(pair_import, "scratch_folder", record)
    for instruction in ("x", "y", "x"):
        import_folder("--instruction", instruction)
    assert folders[0] == folders[2] != folders[1]
