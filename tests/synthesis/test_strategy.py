import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from emuedit.data.shards import write_shard
from emuedit.runtime import rng
from emuedit.synthesis.strategy import (
    AllCandidates,
    Arm,
    BanditStrategy,
    TrialCounts,
    amount,
    choose,
    outcome,
    posterior,
    rounds,
    told,
)

PICTURE = encode_png(np.zeros((2, 2, 3), np.uint8))
GATES: dict[str, Any] = {"default": {}, "local": {"dino": {"min": 0.5}}}


def bandit(**changes: Any) -> BanditStrategy:
    fixed = {"kind": "bandit", "per_instruction": 1, "shards_per_round": 2, "sizes": (0.1, 0.3), "gates": GATES}
    return BanditStrategy.model_validate(fixed | changes)


def trial_counts(won: int, lost: int, candidate: int = 0, size: int = 0) -> TrialCounts:
    arm = Arm("local", size, candidate)
    return Counter({(arm, True): won, (arm, False): lost})


def pair(candidate: int, area: float, dino: float | None, task: str = "local") -> Pair:
    recipe = {"kind": "control", "candidate": candidate, "object_area": area}
    if task == "detect":
        recipe = {"kind": "annotate", "candidate": 0}
    return Pair("i", (), task, "go", "a", "b", 0, "m", recipe, PICTURE, PICTURE, None, {"dino": dino})


def test_the_posterior_is_beta_from_an_even_prior() -> None:
    arm = Arm("local", 0, 0)
    assert posterior(Counter(), arm) == (1, 1)
    a, b = posterior(trial_counts(won=7, lost=1), arm)
    assert (a, b) == (8, 2)
    assert a / (a + b) == pytest.approx(0.8)
    drawn = [choose(bandit(), "local", 0.05, 2, trial_counts(7, 1), f"i{n}") for n in range(2000)]
    # P(Beta(8, 2) > uniform) is the mean of Beta(8, 2)
    assert np.mean([one == [0] for one in drawn]) == pytest.approx(0.8, abs=0.03)


def test_the_same_state_and_key_choose_the_same() -> None:
    known = trial_counts(3, 2) + trial_counts(2, 4, candidate=1)
    chosen = [tuple(choose(bandit(), "local", 0.05, 4, known, f"i{n}")) for n in range(40)]
    assert chosen == [tuple(choose(bandit(), "local", 0.05, 4, known, f"i{n}")) for n in range(40)]
    assert len(set(chosen)) > 2
    two = bandit(per_instruction=2)
    assert {len(set(choose(two, "local", 0.05, 4, known, f"i{n}"))) for n in range(40)} == {2}
    for strategy, n in ((bandit(per_instruction=9), 3), (AllCandidates(kind="all"), 3), (two, 2)):
        assert choose(strategy, "local", 0.05, n, known, "i") == list(range(n))
        assert amount(strategy, n) == n
    assert amount(two, 4) == 2


def test_sizes_are_learned_apart() -> None:
    known = trial_counts(500, 0, candidate=0, size=0) + trial_counts(0, 500, candidate=1, size=0)
    known += trial_counts(0, 500, candidate=0, size=1) + trial_counts(500, 0, candidate=1, size=1)
    assert [choose(bandit(), "local", area, 2, known, "i") for area in (0.05, 0.1, 0.2)] == [[0], [1], [1]]


def test_it_spends_on_what_wins(tmp_path: Path) -> None:
    """Two candidates that win nine times in ten, and one in ten; shards of ten instructions, rounds of two shards."""
    knob, known, spent = bandit(), TrialCounts(), Counter[int]()
    for part in rounds(knob, 20):
        paths = []
        for shard in part:
            made = []
            for n in range(10):
                key = f"{shard}/{n}"
                (k,) = choose(knob, "local", 0.05, 2, known, key)
                spent[k] += 1
                made.append(pair(k, 0.05, float(rng("test", key).random() < (0.9, 0.1)[k])))
            paths.append(tmp_path / f"shard-{shard:05d}.parquet")
            write_shard(paths[-1], made, Pair)
        known = known + outcome(knob, paths)
    assert spent.total() == 200
    assert spent[0] > 160
    said = json.loads(told(known))
    assert [(one["candidate"], one["won"] + one["lost"]) for one in said["arms"]] == [(0, spent[0]), (1, spent[1])]
    assert said["arms"][0]["mean"] == pytest.approx(0.9, abs=0.07)


def test_what_passes_the_gates_wins(tmp_path: Path) -> None:
    made = [pair(0, 0.05, 0.5), pair(1, 0.05, 0.4), pair(1, 0.1, 0.9), pair(1, 0.05, None), pair(0, 0.0, None, "style")]
    write_shard(tmp_path / "a.parquet", [*made, pair(0, 0.0, None, "detect")], Pair)
    write_shard(tmp_path / "b.parquet", [], Pair)
    assert outcome(bandit(), [tmp_path / "a.parquet", tmp_path / "b.parquet"]) == {
        (Arm("local", 0, 0), True): 1,
        (Arm("local", 0, 1), False): 2,
        (Arm("local", 1, 1), True): 1,
        (Arm("style", 0, 0), True): 1,
    }
    assert outcome(bandit(), [tmp_path / "b.parquet"]) == {}


def test_rounds_are_whole_and_in_order() -> None:
    assert rounds(bandit(), 5) == [range(2), range(2, 4), range(4, 5)]
    assert rounds(AllCandidates(kind="all"), 5) == [range(5)]


@pytest.mark.parametrize("sizes", [(0.3, 0.1), (0.1, 0.1), (0.0, 0.5), (1.0,)])
def test_sizes_that_are_none_are_refused(sizes: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="growing shares of the picture"):
        bandit(sizes=sizes)
