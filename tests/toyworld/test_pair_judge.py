from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import Edits, build_edits
from toyworld.oracle import pair_judge

N = 4
SCENE_TASKS = ("local", "remove", "add", "texture", "background", "global", "style", "text")
MASKED_TASKS = ("local", "remove", "add", "texture", "background", "text")


def pairs_with_targets(edits: Edits, targets: np.ndarray) -> list[Pair]:
    """Pairs with exact sources and these targets. Their masks are slightly wider than the edited region."""
    pairs = []
    for n, pair in enumerate(exact_dataset.build_pairs(edits)):
        changed = (edits.before[n] != edits.exact[n]).any(-1)
        mask = maximum_filter(changed, 1 if edits.task == "background" else 5).astype(np.uint8) * 255
        mask_png = encode_png(mask) if edits.task in MASKED_TASKS else None
        pairs.append(replace(pair, target=encode_png(targets[n]), mask=mask_png))
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SCENE_TASKS, "detect", "segment", "sketch"])
def test_exact_pairs_are_right_and_alternatives_are_not(task: str) -> None:
    edits = build_edits(task, "held_out", 0, N)
    exact, wrong = pairs_with_targets(edits, edits.exact), pairs_with_targets(edits, edits.alternatives[:, 0])
    readings = pair_judge.read_images(tuple(dict.fromkeys(pair_judge.images_to_read([*exact, *wrong]))))  # they share sources
    exact_verdicts = pair_judge.judge(exact, readings)
    assert sum(verdict.right for verdict in exact_verdicts) >= N - 1, [verdict.faults for verdict in exact_verdicts]
    wrong_verdicts = pair_judge.judge(wrong, readings)
    assert not any(verdict.right for verdict in wrong_verdicts)
    faults = [fault for verdict in wrong_verdicts for fault in verdict.faults]
    assert all(fault.startswith(("source_", "target_", "rest_")) for fault in faults)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["local", "remove", "background"])
def test_unchanged_target_is_a_fault(task: str) -> None:
    edits = build_edits(task, "held_out", 0, N)
    verdicts = pair_judge.judge(pairs_with_targets(edits, edits.before))
    assert all(any(fault.startswith("target_") for fault in verdict.faults) for verdict in verdicts)


@pytest.mark.slow
def test_change_outside_the_mask_is_a_fault() -> None:
    edits = build_edits("local", "held_out", 0, N)
    damaged = edits.exact.copy()
    outside = ~maximum_filter((edits.before != edits.exact).any(-1), (0, 9, 9))
    damaged[:, ::2][outside[:, ::2]] = 0
    verdicts = pair_judge.judge(pairs_with_targets(edits, damaged))
    assert all("rest_outside" in verdict.faults for verdict in verdicts)


@pytest.mark.slow
def test_judge_accepts_earlier_readings() -> None:
    edits = build_edits("detect", "held_out", 0, 2)
    pairs = pairs_with_targets(edits, edits.exact)
    pngs = pair_judge.images_to_read(pairs)
    assert pngs == (pairs[0].source, pairs[1].source)  # the annotated targets cannot be read
    readings = pair_judge.read_images(pngs)
    assert pair_judge.judge(pairs, readings) == pair_judge.judge(pairs)
    empty_readings = {png: replace(reading, objects=()) for png, reading in readings.items()}
    verdicts = pair_judge.judge(pairs, empty_readings)
    assert all(verdict.right or verdict.faults == ("source_object",) for verdict in verdicts)


def test_unsupported_task_is_an_error() -> None:
    pairs = exact_dataset.build_pairs(build_edits("depth", "held_out", 0, 1))
    with pytest.raises(ValueError, match=r"want a task of .*got 'depth'"):
        pair_judge.judge(pairs)
