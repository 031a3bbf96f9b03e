from pathlib import Path

import numpy as np

from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Pair, Verdict
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import edits


def test_exact_pairs_read_like_the_stations_own(tmp_path: Path) -> None:
    exact_dataset.write(tmp_path, {"remove": 3, "detect": 3})
    pairs = list(read_folder(tmp_path / "data/pairs", Pair, verify=True))
    verdicts = list(read_folder(tmp_path / "data/dataset", Verdict, verify=True))
    assert [one.pair_id for one in verdicts] == [one.id for one in pairs]
    assert all(one.kept for one in verdicts)
    assert [one.task for one in verdicts] == ["remove"] * 3 + ["detect"] * 3
    known = edits("detect", "train", 0, 3)
    assert [one.instruction for one in pairs[3:]] == known.instructions
    for pair, before, after in zip(pairs[3:], known.before, known.exact, strict=True):
        assert np.array_equal(decode_png(pair.source), before)
        assert np.array_equal(decode_png(pair.target), after)
        assert len(pair.parent_ids) == 2
    assert len({one.id for one in pairs}) == 6
