from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from emuedit.pairs import Params
from emuedit.params import load
from emuedit.records import Drop, Instruction, Pair, decode_png
from emuedit.runtime import Runtime
from emuedit.synthesis import masks
from emuedit.synthesis.difference import NoiseDifference
from emuedit.synthesis.making import make_shard
from emuedit.synthesis.studio import Studio

ROOT = Path(__file__).parents[2]
STAR, BLUE = "a big red star on the left on grass", "a big blue star on the left on grass"
HOW = NoiseDifference(strength=0.5, n_noises=2, threshold=0.5)


def make(some: Sequence[Instruction], both: bool) -> tuple[list[Pair], list[Drop]]:
    """Pairs of `local` under a mask that is asked of the painter; with `both` after one of the object."""
    knobs = load(Params, "pairs", ROOT / "params.yaml")
    candidate = knobs.recipes.local[0]
    assert candidate.mask is not None
    own = candidate.model_copy(update={"mask": candidate.mask.model_copy(update={"noise_difference": HOW})})
    recipes = knobs.recipes.model_copy(update={"local": (candidate, own) if both else (own,)})
    quick = {"recipes": recipes, "steps": 3, "rows_per_batch": 6, "detector_threshold": 0.0, "max_area": 0.9}
    knobs = knobs.model_copy(update=quick)
    return make_shard(some, Studio(knobs.world, ROOT, Runtime("cpu", "float32"), knobs.steps), knobs, Counter())


def instruction(target: str, named: str | None) -> Instruction:
    return Instruction("c0", "local", "change it", STAR, target, named, None, False, 0, "test", "")


def test_a_mask_that_is_asked_of_the_painter_needs_no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(detector: Any, segmenter: Any, images: Any, queries: Any, *_: Any) -> dict[Any, Any]:
        assert not queries
        return {}

    monkeypatch.setattr(masks, "find", find)
    (pair,), (drop,) = make([instruction(BLUE, None), instruction(STAR, "red star")], both=False)
    assert pair.target_caption == BLUE
    assert pair.recipe["mask"]["noise_difference"] == {"strength": 0.5, "n_noises": 2, "threshold": 0.5}
    assert pair.mask is not None
    M = decode_png(pair.mask)
    assert 0 < (M > 0).mean() < 1
    assert drop.reason == "no_difference"  # the painter has nothing to tell apart


def test_candidates_may_differ_in_where_their_masks_come_from() -> None:
    (named, asked), drops = make([instruction(BLUE, "red star")], both=True)
    assert not drops
    assert named.mask != asked.mask
    assert named.recipe["mask"]["noise_difference"] is None
    assert named.source == asked.source
