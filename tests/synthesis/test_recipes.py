import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from emuedit.config import load
from emuedit.stages.pairs import Params
from emuedit.synthesis import batching
from emuedit.synthesis.recipes import Candidate, Words, described, is_drawn
from emuedit.synthesis.sampler import Variant
from emuedit.tasks import TASKS

ROOT = Path(__file__).parents[2]
ANY = {"mask": None, "source_fraction": 0.0, "self_fraction": 0.0, "blend_from": 0.0, "blend_to": 0.0, "guidance": 3.0}


def test_every_task_is_painted_or_drawn() -> None:
    recipes = load(Params, "pairs", ROOT / "params.yaml").recipes
    for task in TASKS:
        assert bool(recipes.of(task.name)) != is_drawn(task.name)
    assert all(one.mask and one.mask.complement for one in recipes.of("background"))
    assert all(one.mask is None and one.self_fraction > 0 for name in ("global", "style") for one in recipes.of(name))


def test_wrong_fractions_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"blend_from must not exceed blend_to, got 0.5 and 0.2"):
        Candidate(**(ANY | {"blend_from": 0.5, "blend_to": 0.2}))
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Candidate(**(ANY | {"self_fraction": 1.5}))


def test_a_pair_keeps_all_that_made_it() -> None:
    got = described(Candidate(**ANY), 1, steps=15)
    assert got == {"kind": "control", "candidate": 1, "steps": 15, **ANY}


def test_batches_count_their_sources() -> None:
    one = Variant(0, "a", torch.ones(1, 2, 2), 0.0, 0.0, 0.0, 0.0, 3.0)
    wanted = [replace(one, source=g, caption=str(n)) for n, g in enumerate([0, 0, 0, 1, 1, 2, 2])]
    got = list(batching.packed(wanted, 4))
    assert [[v.caption for v in batch] for batch in got] == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert all(len(batch) + len({v.source for v in batch}) <= 4 for batch in got)
    assert [len(batch) for batch in batching.packed(wanted, 1)] == [1] * 7


def test_a_candidate_is_held_by_a_mask_or_by_words() -> None:
    words = {"mask": None, "cross_fraction": 0.8, "self_fraction": 0.4, "self_tokens": 64, "null_too": False, "blend": None}
    known = load(Params, "pairs", ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    known["recipes"]["local"] = [ANY, words | {"guidance": 5.0}]
    by_mask, by_words = Params.model_validate_json(json.dumps(known)).recipes.local
    assert (type(by_mask), type(by_words)) == (Candidate, Words)
    known["recipes"]["local"] = [words | {"guidance": 5.0, "blend_from": 0.0}]
    with pytest.raises(ValidationError, match=r"words\.blend_from"):
        Params.model_validate_json(json.dumps(known))
