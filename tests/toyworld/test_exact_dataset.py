from pathlib import Path

import numpy as np

from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Pair, Verdict
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import build_edits


def test_exact_dataset_has_the_format_of_the_stages(tmp_path: Path) -> None:
    exact_dataset.write_dataset(tmp_path, {"remove": 3, "detect": 3})
    pairs = list(read_folder(tmp_path / "data/pairs", Pair, verify=True))
    verdicts = list(read_folder(tmp_path / "data/dataset", Verdict, verify=True))
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]
    assert all(verdict.kept for verdict in verdicts)
    assert [verdict.task for verdict in verdicts] == ["remove"] * 3 + ["detect"] * 3
    edits = build_edits("detect", "train", 0, 3)
    assert [pair.instruction for pair in pairs[3:]] == edits.instructions
    for pair, before, exact in zip(pairs[3:], edits.before, edits.exact, strict=True):
        assert np.array_equal(decode_png(pair.source), before)
        assert np.array_equal(decode_png(pair.target), exact)
        assert len(pair.parent_ids) == 2
    assert len({pair.id for pair in pairs}) == 6
