"""Pairs that start from an image of the benchmark are not used for training."""

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
from emuedit.data.publish import read_folder
from emuedit.data.records import Pair
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


def pair_of(name: str, source: bytes) -> Pair:
    return dataclasses.replace(make_pair(name, "style", 0), source=source)


def write_sources(file: Path, *images: bytes) -> None:
    kind = pa.struct([("bytes", pa.binary())])
    pq.write_table(pa.table({"source": pa.array([{"bytes": image} for image in images], kind)}), file)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Held-out edits of the photos 0 and 1, the second with a result, and one for training of photo 2."""
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
def test_copies_of_held_out_images_and_of_results_are_rejected(tmp_path: Path, world: World) -> None:
    wide, centre = photo(0, 96, 144), photo(0, 96, 144)[:, 24:120]
    sources = {
        "same": photo(1), "smaller": resize(photo(1), 64), "jpeg": as_jpeg(photo(1)), "result": photo(3), "wide": wide,
        "centre": resize(centre, 64), "training": photo(2), "other": photo(4), "grey": photo(1)[..., 0],
        "crop": photo(1)[:64, :64],
    }  # fmt: skip
    pairs = [pair_of(name, encode_png(pixels)) for name, pixels in sources.items()]
    publish_pairs(tmp_path, pairs[:4], pairs[4:])
    summary = dataset.run(make_params(world=world), tmp_path)
    rejected = {name for name, why in reasons(tmp_path).items() if why == ("in_benchmark",)}
    assert rejected == {"same", "smaller", "jpeg", "result", "wide", "centre"}
    assert summary.counts["style.in_benchmark"] == summary.counts["in_benchmark"] == 6
    assert summary.counts["kept"] == 4
    assert "| in_benchmark | 6 |" in (tmp_path / dataset.OUT / "card.md").read_text()


def test_without_a_benchmark_of_images_nothing_is_compared(tmp_path: Path) -> None:
    publish_pairs(tmp_path, [pair_of("same", encode_png(photo(1)))])
    code = World.model_construct(benchmark="toyworld/edits/toy_benchmark.py")
    assert dataset.run(make_params(world=code), tmp_path).counts["kept"] == 1
    assert dataset.run(make_params(), tmp_path).counts["kept"] == 1


def test_a_damaged_source_image_matches_nothing(tmp_path: Path, benchmark: Path) -> None:
    write_sources(tmp_path / "shard.parquet", b"no PNG", encode_png(photo(1)))
    write_sources(tmp_path / "empty.parquet")
    shards = {tmp_path / "empty.parquet": "a", tmp_path / "shard.parquet": "b"}
    assert benchmark_copies.find_copies(benchmark, shards, tmp_path / "cache").tolist() == [False, True]


@pytest.mark.slow
def test_another_filter_decodes_no_source_image_and_another_image_of_the_benchmark_does(
    tmp_path: Path, benchmark: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_pairs(tmp_path, [pair_of("first", encode_png(photo(1)))], [pair_of("second", encode_png(photo(4)))])
    read: list[str] = []
    read_sources = benchmark_copies._read_sources

    def record(shard: Path) -> Any:
        read.append(shard.name)
        return read_sources(shard)

    monkeypatch.setattr(benchmark_copies, "_read_sources", record)
    for least in (0.0, 0.5):
        dataset.run(make_params(world=world, filters={"default": {}, "local": {"dino": {"min": least}}}), tmp_path)
        assert reasons(tmp_path) == {"first": ("in_benchmark",), "second": ()}
    assert read == ["shard-00000.parquet", "shard-00001.parquet"]
    Image.fromarray(photo(4)).save(benchmark / "1.png")
    dataset.run(make_params(world=world), tmp_path)
    assert reasons(tmp_path) == {"first": (), "second": ("in_benchmark",)}
    assert read[2:] == read[:2]


def test_a_missing_image_of_the_benchmark_is_named(tmp_path: Path, benchmark: Path, world: World) -> None:
    publish_pairs(tmp_path, [pair_of("first", encode_png(photo(1)))])
    (benchmark / "1.png").unlink()
    with pytest.raises(ImageError, match=r"want an image, got .*benchmark/1\.png"):
        dataset.run(make_params(world=world), tmp_path)


def test_one_part_of_a_shard_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_copies, "_ROWS_PER_READ", 2)
    write_sources(tmp_path / "shard.parquet", *(b"%d" % number for number in range(5)))
    assert list(benchmark_copies._read_sources(tmp_path / "shard.parquet")) == [[b"0", b"1"], [b"2", b"3"], [b"4"]]
