"""The edits that the rule-based LLM writes are like those of the benchmark."""

import random

import numpy as np

from toyworld.edits.caption_edits import write_edit
from toyworld.edits.caption_parser import parse


def test_added_objects_are_big_where_there_is_room_as_in_the_benchmark() -> None:
    added: dict[str, list[str]] = {}
    for caption in ("a small red star on the left on grass", "a big red star on the left on grass"):
        parsed = parse(caption)
        assert parsed is not None
        answers = [write_edit("add", parsed, random.Random(seed)) for seed in range(80)]
        added[caption] = [answer["output_caption"].removeprefix(caption.removesuffix(" on grass")) for answer in answers]
    beside_small, beside_big = added.values()
    assert 0.4 < np.mean([" big " in text for text in beside_small]) < 0.8
    assert any(f" {texture} " in text for texture in ("striped", "checkered", "dotted") for text in beside_small)
    assert not any("small" in text and "striped" in text for text in beside_small), "textures are not visible on small objects"
    assert any(" big " in text for text in beside_big)
    assert all(" on the right" in text or " at the right" in text for text in beside_big if " big " in text), "no overlap"
