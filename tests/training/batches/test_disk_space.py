"""Encoded pairs that do not fit on the disk are noticed before they are encoded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from emuedit.models.text_to_image import TextToImageModel
from emuedit.training.batches import latent_files
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.disk_space import DiskSpaceError, make_room
from emuedit.training.batches.kept_pairs import TrainingPairs
from tests.training.tiny_pairs import make_pair, write_pairs

BUCKETS = AspectBuckets(((16, 24),))
MakeRoom = Callable[..., None]


@pytest.fixture
def make_room_on(base_model: TextToImageModel, monkeypatch: pytest.MonkeyPatch) -> MakeRoom:
    """`make_room` on a disk with this many free bytes."""

    def make(free: int, pairs: TrainingPairs, folder: Path, mirrored: bool = False) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        make_room(pairs, base_model, folder, BUCKETS, mirrored=mirrored, text_key="texts")

    return make


def encoded_bytes(folder: Path) -> int:
    """Size of all latents and encoded instructions in a folder, without the headers of their files."""
    files = [file for file in folder.glob("*.npy") if file.name.endswith(("hidden.npy", "pooled.npy", "16x24.npy"))]
    return sum(file.stat().st_size - 128 for file in files if "null" not in file.name)


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_latents_and_distinct_instructions_are_counted(
    mirrored: bool, base_model: TextToImageModel, tmp_path: Path, make_room_on: MakeRoom
) -> None:
    """Instructions occur in several shards, and are encoded once."""
    pairs = TrainingPairs(*write_pairs(tmp_path, [make_pair(n) for n in range(24)]))
    latent_files.build(pairs, base_model, tmp_path / "encoded", BUCKETS, mirrored=mirrored)
    size = encoded_bytes(tmp_path / "encoded")
    make_room_on(size, pairs, tmp_path / "cache", mirrored)
    with pytest.raises(DiskSpaceError, match=r"want 0\.0 GB free in .*cache, for latents of 20 pairs .* and 5 encoded instr"):
        make_room_on(size - 1, pairs, tmp_path / "cache", mirrored)
    make_room_on(0, pairs, tmp_path / "encoded", mirrored)


@pytest.mark.slow
def test_only_what_other_pairs_left_makes_room(base_model: TextToImageModel, tmp_path: Path, make_room_on: MakeRoom) -> None:
    """The second of two shards is kept; of its two pairs, the filters dropped one before."""
    (folders, dataset), cache = (
        write_pairs(tmp_path / "old", [make_pair(n) for n in (0, 1, 2, 4)], per_shard=2),
        tmp_path / "cache",
    )
    latent_files.build(TrainingPairs(folders, dataset), base_model, cache, BUCKETS, mirrored=False)
    before = sizes(cache)
    pairs = TrainingPairs(*write_pairs(tmp_path / "new", [make_pair(n) for n in (2, 4, 5)], per_shard=2))
    latent_files.build(pairs, base_model, tmp_path / "encoded", BUCKETS, mirrored=False)
    missing = encoded_bytes(tmp_path / "encoded") * 2 // 3  # the latents and the instruction of pair 2 are there

    make_room_on(missing, pairs, cache)
    assert sizes(cache) == before, "want files of other pairs kept while there is room"

    shutil.copytree(cache, tmp_path / "full")
    make_room_on(missing - 1, pairs, tmp_path / "full")
    unused = before.keys() - sizes(tmp_path / "full").keys()
    kinds = {name.split(".", 1)[1] for name in unused}
    assert kinds == {"json", "0.16x24.npy", "0.encoded.npy", "pairs.npy", "hidden.npy", "texts.npy"}, (
        "want the first shard's files"
    )
    room = sum(before[name] for name in unused)
    with pytest.raises(DiskSpaceError, match=r"for latents of 2 pairs .* and 2 encoded instructions .* make room"):
        make_room_on(missing - room - 1, pairs, cache)
    assert sizes(cache) == before, "want nothing deleted in vain"
    make_room_on(missing - room, pairs, cache)

    left = encoded_bytes(cache)
    latent_files.build(pairs, base_model, cache, BUCKETS, mirrored=False)
    assert encoded_bytes(cache) - left == missing
