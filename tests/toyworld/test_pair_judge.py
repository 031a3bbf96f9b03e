from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import Edits, edits
from toyworld.oracle import pair_judge

N = 4
SCENE = ("local", "remove", "add", "texture", "background", "global", "style", "text")


def pairs(some: Edits, targets: np.ndarray) -> list[Pair]:
    """Exact sources with the given targets, and masks a little wider than what must change."""
    made = []
    for i, one in enumerate(exact_dataset.pairs(some)):
        changed = (some.before[i] != some.exact[i]).any(-1)
        mask = maximum_filter(changed, 1 if some.task == "background" else 5).astype(np.uint8) * 255
        masked = some.task in SCENE[:5] or some.task == "text"
        made.append(replace(one, target=encode_png(targets[i]), mask=encode_png(mask) if masked else None))
    return made


@pytest.mark.parametrize("task", [*SCENE, "detect", "segment", "sketch"])
def test_exact_pairs_are_right_and_wrong_ones_are_not(task: str) -> None:
    some = edits(task, "held_out", 0, N)
    right = pair_judge.judge(pairs(some, some.exact))
    assert sum(one.right for one in right) >= N - 1, [one.faults for one in right]
    wrong = pair_judge.judge(pairs(some, some.alternatives[:, 0]))
    assert not any(one.right for one in wrong)
    assert all(fault.startswith(("source_", "target_", "rest_")) for one in wrong for fault in one.faults)


@pytest.mark.parametrize("task", ["local", "remove", "background"])
def test_nothing_done_is_seen(task: str) -> None:
    some = edits(task, "held_out", 0, N)
    found = pair_judge.judge(pairs(some, some.before))
    assert all(any(fault.startswith("target_") for fault in one.faults) for one in found)


def test_what_moves_outside_of_the_mask_is_a_fault() -> None:
    some = edits("local", "held_out", 0, N)
    spoilt = some.exact.copy()
    away = ~maximum_filter((some.before != some.exact).any(-1), (0, 9, 9))
    spoilt[:, ::2][away[:, ::2]] = 0
    assert all("rest_outside" in one.faults for one in pair_judge.judge(pairs(some, spoilt)))


def test_readings_can_be_handed_in() -> None:
    made = pairs(some := edits("detect", "held_out", 0, 2), some.exact)
    needed = pair_judge.pictures(made)
    assert needed == (made[0].source, made[1].source)  # what is marked cannot be read
    known = pair_judge.readings(needed)
    assert pair_judge.judge(made, known) == pair_judge.judge(made)
    nothing = {png: replace(seen, objects=()) for png, seen in known.items()}
    assert all(one.right or one.faults == ("source_object",) for one in pair_judge.judge(made, nothing))


def test_a_task_without_a_truth_is_named() -> None:
    some = exact_dataset.pairs(edits("depth", "held_out", 0, 1))
    with pytest.raises(ValueError, match=r"want a task of .*got 'depth'"):
        pair_judge.judge(some)
