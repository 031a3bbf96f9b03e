"""Which files the profile of the kept pairs reads, and what it reports meanwhile."""

from pathlib import Path

import pytest

from emuedit.data import file_hashes
from emuedit.data_checks import profile_maker
from emuedit.data_checks.profile_maker import SampleSettings
from emuedit.data_checks.text_measures import TextSettings
from tests.stages.coloured_pairs import ColorClip, make_pairs, publish_kept


@pytest.mark.slow
def test_files_are_hashed_under_a_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_kept(tmp_path, make_pairs(30), n_shards=3)
    file_hashes._cache.clear()
    path = tmp_path / "data/pairs/shard-00001.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-9] + b"?" + content[-8:])
    texts, sample = TextSettings((1, 20), (1, 20), (), 0.0), SampleSettings(pairs=4, shards=2, min_side_px=8)
    profile, _ = profile_maker.make([tmp_path / "data/pairs"], tmp_path, "data/dataset", texts, sample, ColorClip(), "c")
    (example,) = profile.examples["damaged"]
    assert example.startswith("data/pairs/shard-00001.parquet has the hash")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("validation: ")]
    assert lines[0].startswith("validation: hash files: 0/6 files, 0%")
    assert lines[1] == "validation: hash files: 6/6 files, 100%"
    assert lines[2].startswith("validation: texts: 0/2 shards")
