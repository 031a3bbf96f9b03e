"""Encoded pairs that do not fit on the disk are noticed before they are encoded."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from emuedit.models.text_to_image import TextToImageModel
from emuedit.training.batches import latent_files
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.disk_space import DiskSpaceError, check_disk_space
from emuedit.training.batches.kept_pairs import TrainingPairs
from tests.training.tiny_pairs import make_pair, write_pairs

BUCKETS = AspectBuckets(((16, 24),))


def check(pairs: TrainingPairs, model: TextToImageModel, folder: Path, mirrored: bool) -> None:
    check_disk_space(pairs, model, folder, BUCKETS, mirrored=mirrored)


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
def test_latents_and_distinct_instructions_are_counted(
    mirrored: bool, base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instructions occur in several shards, and are encoded once."""
    pairs = TrainingPairs(*write_pairs(tmp_path, [make_pair(n) for n in range(24)]))
    latent_files.build(pairs, base_model, tmp_path / "encoded", BUCKETS, mirrored=mirrored)
    arrays = [file for file in (tmp_path / "encoded").glob("*.npy") if "null" not in file.name]
    is_counted = [file.name.endswith(("hidden.npy", "pooled.npy", "16x24.npy")) for file in arrays]
    size = sum(file.stat().st_size - 128 for file, counted in zip(arrays, is_counted, strict=True) if counted)
    free = size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    check(pairs, base_model, tmp_path / "cache", mirrored)
    free = size - 1
    with pytest.raises(DiskSpaceError, match=r"want 0\.0 GB free in .*cache, for latents of 20 pairs .* and 5 encoded instr"):
        check(pairs, base_model, tmp_path / "cache", mirrored)
    (tmp_path / "cache/part.npy").write_bytes(b"1")
    check(pairs, base_model, tmp_path / "cache", mirrored)
