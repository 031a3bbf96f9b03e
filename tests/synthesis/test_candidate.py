from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emuedit.config import load
from emuedit.data.png import decode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.runtime import Runtime
from emuedit.stages.pairs import Params
from emuedit.synthesis import masks
from emuedit.synthesis.candidate import make_shard
from emuedit.synthesis.methods.diffedit import NoiseDifference
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import Candidate, WordBlend, Words

ROOT = Path(__file__).parents[2]
STAR, BLUE = "a big red star on the left on grass", "a big blue star on the left on grass"
HOW = NoiseDifference(strength=0.5, n_noises=2, threshold=0.5)


def make(some: Sequence[Instruction], both: bool) -> tuple[list[Pair], list[Drop]]:
    """Pairs of `local` under a mask that is asked of the base_model; with `both` after one of the object."""
    candidate = load(Params, "pairs", ROOT / "params.yaml").recipes.local[0]
    assert candidate.mask is not None
    own = candidate.model_copy(update={"mask": candidate.mask.model_copy(update={"noise_difference": HOW})})
    return made_by(some, candidate, own) if both else made_by(some, own)


def made_by(some: Sequence[Instruction], *candidates: Candidate | Words) -> tuple[list[Pair], list[Drop]]:
    """Pairs of `local`, quickly."""
    knobs = load(Params, "pairs", ROOT / "params.yaml")
    recipes = knobs.recipes.model_copy(update={"local": candidates})
    quick = {"recipes": recipes, "steps": 3, "rows_per_batch": 6, "detector_threshold": 0.0, "max_area": 0.9}
    knobs = knobs.model_copy(update=quick)
    return make_shard(some, ModelSet(knobs.world, ROOT, Runtime("cpu", "float32"), knobs.steps), knobs, Counter())


def instruction(target: str, named: str | None) -> Instruction:
    return Instruction("c0", "local", "change it", STAR, target, named, None, False, 0, "test", "")


def test_a_mask_that_is_asked_of_the_painter_needs_no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(detector: Any, segmenter: Any, images: Any, queries: Any, *_: Any) -> dict[Any, Any]:
        assert not queries
        return {}

    monkeypatch.setattr(masks, "locate_objects", find)
    (pair,), (drop,) = make([instruction(BLUE, None), instruction(STAR, "red star")], both=False)
    assert pair.target_caption == BLUE
    assert pair.recipe["mask"]["noise_difference"] == {"strength": 0.5, "n_noises": 2, "threshold": 0.5}
    assert pair.mask is not None
    M = decode_png(pair.mask)
    assert 0 < (M > 0).mean() < 1
    assert drop.reason == "no_difference"  # the base_model has nothing to tell apart


def test_candidates_may_differ_in_where_their_masks_come_from() -> None:
    (named, asked), drops = make([instruction(BLUE, "red star")], both=True)
    assert not drops
    assert named.mask != asked.mask
    assert named.recipe["mask"]["noise_difference"] is None
    assert named.source == asked.source


def test_words_hold_a_picture_as_masks_do() -> None:
    """Prompt-to-Prompt as a candidate: nothing held is plain sampling; the same words, all held, are the source again."""
    by_mask = load(Params, "pairs", ROOT / "params.yaml").recipes.local[0]
    fixed: dict[str, Any] = {"mask": by_mask.mask, "self_tokens": 1 << 20, "null_too": True, "guidance": 3.0}
    held = Words(cross_fraction=1.0, self_fraction=1.0, blend=WordBlend(n_tokens=256, threshold=0.3, start=0.0), **fixed)
    free = Words(cross_fraction=0.0, self_fraction=0.0, blend=None, **fixed)
    some = [instruction(BLUE, "red star"), instruction(STAR, "red star")]
    pairs, drops = made_by(some, by_mask, held, free)
    assert not drops
    assert [pair.recipe["kind"] for pair in pairs] == ["control", "words", "words"] * 2
    assert pairs[1].recipe["blend"] == {"n_tokens": 256, "threshold": 0.3, "start": 0.0}
    assert all(pair.mask == pairs[0].mask for pair in pairs), "scores look at the same place"

    def change(pair: Pair) -> float:
        return float(np.abs(decode_png(pair.source).astype(int) - decode_png(pair.target)).mean())

    same_held, same_free = change(pairs[4]), change(pairs[5])
    assert same_held <= 1
    assert same_free <= 1
    assert 1 < change(pairs[1]) < change(pairs[2])


def test_captions_that_words_cannot_hold_are_dropped_with_a_reason() -> None:
    candidate = Words(mask=None, cross_fraction=0.8, self_fraction=0.4, self_tokens=64, null_too=False, blend=None, guidance=3.0)
    long = " and ".join([STAR] * 9)
    pairs, (drop,) = made_by([instruction(BLUE, "red star"), instruction(long, "red star")], candidate)
    assert [pair.target_caption for pair in pairs] == [BLUE]
    assert pairs[0].scores["l1_outside"] is None
    assert drop.reason == "caption_too_long"
