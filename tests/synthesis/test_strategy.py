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
    choose_candidates,
    count_trials,
    describe_trials,
    n_candidates,
    posterior,
    shard_rounds,
)

PICTURE = encode_png(np.zeros((2, 2, 3), np.uint8))
FILTERS: dict[str, Any] = {"default": {}, "local": {"dino": {"min": 0.5}}}


def make_bandit(**changes: Any) -> BanditStrategy:
    settings = {"kind": "bandit", "per_instruction": 1, "shards_per_round": 2, "sizes": (0.1, 0.3), "filters": FILTERS}
    return BanditStrategy.model_validate(settings | changes)


def make_trial_counts(succeeded: int, failed: int, candidate: int = 0, size: int = 0) -> TrialCounts:
    arm = Arm("local", size, candidate)
    return Counter({(arm, True): succeeded, (arm, False): failed})


def make_pair(candidate: int, area: float, dino: float | None, task: str = "local") -> Pair:
    recipe = {"kind": "soft_mask", "candidate": candidate, "object_area": area}
    if task == "detect":
        recipe = {"kind": "annotate", "candidate": 0}
    return Pair("i", (), task, "go", "a", "b", 0, "m", recipe, PICTURE, PICTURE, None, {"dino": dino})


@pytest.mark.slow
def test_the_posterior_is_beta_from_a_uniform_prior() -> None:
    arm = Arm("local", 0, 0)
    assert posterior(Counter(), arm) == (1, 1)
    a, b = posterior(make_trial_counts(succeeded=7, failed=1), arm)
    assert (a, b) == (8, 2)
    assert a / (a + b) == pytest.approx(0.8)
    choices = [choose_candidates(make_bandit(), "local", 0.05, 2, make_trial_counts(7, 1), f"i{n}") for n in range(2000)]
    # P(Beta(8, 2) > uniform) is the mean of Beta(8, 2)
    assert np.mean([choice == [0] for choice in choices]) == pytest.approx(0.8, abs=0.03)


def test_the_same_trial_counts_and_key_give_the_same_choice() -> None:
    counts = make_trial_counts(3, 2) + make_trial_counts(2, 4, candidate=1)
    choices = [tuple(choose_candidates(make_bandit(), "local", 0.05, 4, counts, f"i{n}")) for n in range(40)]
    assert choices == [tuple(choose_candidates(make_bandit(), "local", 0.05, 4, counts, f"i{n}")) for n in range(40)]
    assert len(set(choices)) > 2
    two = make_bandit(per_instruction=2)
    assert {len(set(choose_candidates(two, "local", 0.05, 4, counts, f"i{n}"))) for n in range(40)} == {2}
    for strategy, n in ((make_bandit(per_instruction=9), 3), (AllCandidates(kind="all"), 3), (two, 2)):
        assert choose_candidates(strategy, "local", 0.05, n, counts, "i") == list(range(n))
        assert n_candidates(strategy, n) == n
    assert n_candidates(two, 4) == 2


def test_object_sizes_have_separate_arms() -> None:
    counts = make_trial_counts(500, 0, candidate=0, size=0) + make_trial_counts(0, 500, candidate=1, size=0)
    counts += make_trial_counts(0, 500, candidate=0, size=1) + make_trial_counts(500, 0, candidate=1, size=1)
    choices = [choose_candidates(make_bandit(), "local", area, 2, counts, "i") for area in (0.05, 0.1, 0.2)]
    assert choices == [[0], [1], [1]]


@pytest.mark.slow
def test_the_better_candidate_is_chosen_more_often(tmp_path: Path) -> None:
    """Candidate 0 succeeds nine times in ten, candidate 1 once; shards of ten instructions, rounds of two shards."""
    bandit, counts, n_chosen = make_bandit(), TrialCounts(), Counter[int]()
    for shards in shard_rounds(bandit, 20):
        paths = []
        for shard in shards:
            pairs = []
            for n in range(10):
                key = f"{shard}/{n}"
                (candidate,) = choose_candidates(bandit, "local", 0.05, 2, counts, key)
                n_chosen[candidate] += 1
                pairs.append(make_pair(candidate, 0.05, float(rng("test", key).random() < (0.9, 0.1)[candidate])))
            paths.append(tmp_path / f"shard-{shard:05d}.parquet")
            write_shard(paths[-1], pairs, Pair)
        counts = counts + count_trials(bandit, paths)
    assert n_chosen.total() == 200
    assert n_chosen[0] > 160
    arms = json.loads(describe_trials(counts))["arms"]
    assert [(arm["candidate"], arm["succeeded"] + arm["failed"]) for arm in arms] == [(0, n_chosen[0]), (1, n_chosen[1])]
    assert arms[0]["mean"] == pytest.approx(0.9, abs=0.07)


def test_a_pair_that_passes_the_filters_is_a_success(tmp_path: Path) -> None:
    local_pairs = [make_pair(0, 0.05, 0.5), make_pair(1, 0.05, 0.4), make_pair(1, 0.1, 0.9), make_pair(1, 0.05, None)]
    other_pairs = [make_pair(0, 0.0, None, "style"), make_pair(0, 0.0, None, "detect")]
    write_shard(tmp_path / "a.parquet", [*local_pairs, *other_pairs], Pair)
    write_shard(tmp_path / "b.parquet", [], Pair)
    assert count_trials(make_bandit(), [tmp_path / "a.parquet", tmp_path / "b.parquet"]) == {
        (Arm("local", 0, 0), True): 1,
        (Arm("local", 0, 1), False): 2,
        (Arm("local", 1, 1), True): 1,
        (Arm("style", 0, 0), True): 1,
    }
    assert count_trials(make_bandit(), [tmp_path / "b.parquet"]) == {}


def test_rounds_cover_all_shards_in_order() -> None:
    assert shard_rounds(make_bandit(), 5) == [range(2), range(2, 4), range(4, 5)]
    assert shard_rounds(AllCandidates(kind="all"), 5) == [range(5)]


@pytest.mark.parametrize("sizes", [(0.3, 0.1), (0.1, 0.1), (0.0, 0.5), (1.0,)])
def test_bounds_between_sizes_that_do_not_grow_are_refused(sizes: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="increasing shares of the image"):
        make_bandit(sizes=sizes)
