"""Pairs with an image of the benchmark are not used for training."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emuedit.config import World
from emuedit.data.image_io import ImageError, Pixels
from emuedit.data.png import encode_png
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Pair
from emuedit.data.shards import write_shard
from emuedit.metrics import benchmark_copies
from emuedit.stages import dataset
from tests.stages.scored_pairs import make_pair, make_params, publish_pairs, read_verdicts

HEADER = "image,task,instruction,input_caption,output_caption,result,split\n"


def photo(seed: int, height: int = 96, width: int = 96) -> Pixels:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def as_jpeg(pixels: Pixels) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=70)
    return np.asarray(Image.open(stream))


def resize(pixels: Pixels, side_px: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.LANCZOS))


def pair_of(name: str, source: Pixels, target: Pixels | None = None) -> Pair:
    images = {"source": encode_png(source)} | ({} if target is None else {"target": encode_png(target)})
    return dataclasses.replace(make_pair(name, "style", 0), **images)


def write_images(file: Path, *sources: bytes) -> None:
    """A shard of pairs with these source images, and targets of one colour."""
    kind, target = pa.struct([("bytes", pa.binary())]), encode_png(np.zeros((8, 8, 3), np.uint8))
    columns = {"source": sources, "target": [target] * len(sources)}
    pq.write_table(pa.table({name: pa.array([{"bytes": png} for png in pngs], kind) for name, pngs in columns.items()}), file)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Edits of the photos 0 and 1, the second with a result, and one for previews of photo 2."""
    folder = tmp_path / "benchmark"
    folder.mkdir()
    Image.fromarray(photo(0, 96, 144)).save(folder / "wide.png")
    for number in (1, 2, 3):
        Image.fromarray(photo(number)).save(folder / f"{number}.png")
    rows = ["wide.png,style,go,a,b,,", "1.png,style,go,a,b,3.png,held_out", "2.png,style,go,a,b,,train"]
    (folder / "edits.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def world(benchmark: Path) -> World:
    return World.model_construct(benchmark=str(benchmark))


def reasons(root: Path) -> dict[str, tuple[str, ...]]:
    names = {pair.id: pair.instruction_id for pair in read_folder(root / dataset.IN, Pair)}
    return {names[verdict.pair_id]: verdict.reasons for verdict in read_verdicts(root)}


@pytest.mark.slow
def test_copies_of_images_and_of_results_are_rejected(tmp_path: Path, world: World) -> None:
    wide, centre = photo(0, 96, 144), photo(0, 96, 144)[:, 24:120]
    sources = {
        "same": photo(1), "smaller": resize(photo(1), 64), "jpeg": as_jpeg(photo(1)), "result": photo(3), "wide": wide,
        "centre": resize(centre, 64), "preview": photo(2), "other": photo(4), "grey": photo(1)[..., 0],
        "crop": photo(1)[:64, :64],
    }  # fmt: skip
    pairs = [pair_of(name, pixels) for name, pixels in sources.items()]
    pairs.append(pair_of("map to image", photo(5), photo(1)))
    publish_pairs(tmp_path, pairs[:4], pairs[4:])
    summary = dataset.run(make_params(world=world), tmp_path)
    rejected = {name for name, why in reasons(tmp_path).items() if why == ("in_benchmark",)}
    assert rejected == {"same", "smaller", "jpeg", "result", "wide", "centre", "preview", "map to image"}
    assert summary.counts["style.in_benchmark"] == summary.counts["in_benchmark"] == 8
    assert summary.counts["kept"] == 3
    assert "| in_benchmark | 8 |" in (tmp_path / dataset.OUT / "card.md").read_text()


def test_without_a_benchmark_of_images_nothing_is_compared(tmp_path: Path) -> None:
    publish_pairs(tmp_path, [pair_of("same", photo(1))])
    code = World.model_construct(benchmark="toyworld/edits/toy_benchmark.py")
    assert dataset.run(make_params(world=code), tmp_path).counts["kept"] == 1
    assert dataset.run(make_params(), tmp_path).counts["kept"] == 1


def test_a_damaged_source_image_matches_nothing(tmp_path: Path, benchmark: Path) -> None:
    write_images(tmp_path / "shard.parquet", b"no PNG", encode_png(photo(1)))
    write_images(tmp_path / "empty.parquet")
    shards = {tmp_path / "empty.parquet": "a", tmp_path / "shard.parquet": "b"}
    assert benchmark_copies.find_copies(benchmark, shards, tmp_path / "cache").tolist() == [False, True]


@pytest.mark.slow
def test_another_filter_decodes_no_source_image_and_another_image_of_the_benchmark_does(
    tmp_path: Path, benchmark: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_pairs(tmp_path, [pair_of("first", photo(1))], [pair_of("second", photo(4))])
    read: list[str] = []
    read_pairs = benchmark_copies._read_pairs

    def record(shard: Path) -> Any:
        read.append(shard.name)
        return read_pairs(shard)

    monkeypatch.setattr(benchmark_copies, "_read_pairs", record)
    for least in (0.0, 0.5):
        dataset.run(make_params(world=world, filters={"default": {}, "local": {"dino": {"min": least}}}), tmp_path)
        assert reasons(tmp_path) == {"first": ("in_benchmark",), "second": ()}
    assert read == ["shard-00000.parquet", "shard-00001.parquet"]
    Image.fromarray(photo(4)).save(benchmark / "1.png")
    dataset.run(make_params(world=world), tmp_path)
    assert reasons(tmp_path) == {"first": (), "second": ("in_benchmark",)}
    assert read[2:] == read[:2]


def test_of_images_of_nearly_one_colour_only_exact_copies_are_found(tmp_path: Path, benchmark: Path) -> None:
    """Such as poses drawn on black, the results of edits: all other small figures look like them."""
    drawings = np.zeros((2, 96, 96, 3), np.uint8)
    drawings[0, 40:60, 46:50] = drawings[1, 43:63, 46:50] = 255
    Image.fromarray(drawings[0]).save(benchmark / "3.png")
    write_images(tmp_path / "shard.parquet", *map(encode_png, (*drawings, photo(1))))
    shards = {tmp_path / "shard.parquet": "a"}
    assert benchmark_copies.find_copies(benchmark, shards, tmp_path / "cache").tolist() == [True, False, True]
    (benchmark / "edits.csv").write_text(HEADER + "3.png,pose,go,a,b,,\n")
    assert benchmark_copies.find_copies(benchmark, shards, tmp_path / "cache").tolist() == [True, False, False]


def test_a_missing_image_of_the_benchmark_is_named(tmp_path: Path, benchmark: Path, world: World) -> None:
    publish_pairs(tmp_path, [pair_of("first", photo(1))])
    (benchmark / "1.png").unlink()
    with pytest.raises(ImageError, match=r"want an image, got .*benchmark/1\.png"):
        dataset.run(make_params(world=world), tmp_path)


def test_one_part_of_a_shard_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_copies, "_ROWS_PER_READ", 2)
    write_images(tmp_path / "shard.parquet", *(b"%d" % number for number in range(5)))
    parts = [[source for source, _ in pairs] for pairs in benchmark_copies._read_pairs(tmp_path / "shard.parquet")]
    assert parts == [[b"0", b"1"], [b"2", b"3"], [b"4"]]


def test_all_turns_of_an_imported_session_are_rejected(tmp_path: Path, world: World) -> None:
    """The second turn starts from the result of the first one, in which an object has changed."""
    edited = photo(1).copy()
    edited[20:60, 20:60] = 0
    sessions = {"first": ("s1", photo(1)), "second": ("s1", edited), "other": ("s2", photo(4))}
    pairs = [dataclasses.replace(pair_of(name, image), parent_ids=(name, session)) for name, (session, image) in sessions.items()]
    publish_pairs(tmp_path, [pair_of("generated", photo(5))])
    scratch = scratch_folder(tmp_path, "import", "f")
    write_shard(scratch / "shard-00000.parquet", pairs, Pair)
    publish(scratch, tmp_path / "imported", "import", {}, {})
    summary = dataset.run(make_params(world=world, mix={"imported": {"default": {}}}), tmp_path)
    verdicts = {verdict.pair_id: verdict.reasons for verdict in read_verdicts(tmp_path)}
    assert [verdicts[pair.id] for pair in pairs] == [("in_benchmark",), ("in_benchmark",), ()]
    assert summary.counts["kept"] == 2
