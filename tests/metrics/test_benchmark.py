from collections.abc import Callable

import numpy as np
import pytest

from emuedit.config import ParamsError
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import Benchmark


def test_a_benchmark_file_gives_edits_with_known_results() -> None:
    edits = benchmark.load("toyworld/edits/toy_benchmark.py")("remove", "held_out", 2, 3)
    assert edits.task == "remove"
    assert len(edits.instructions) == len(edits.input_captions) == len(edits.output_captions) == 3
    assert all(isinstance(text, str) and text for text in edits.instructions)
    for pictures in (edits.before, edits.exact):
        assert (pictures.dtype, pictures.shape) == (np.uint8, (3, 64, 64, 3))
    assert not np.array_equal(edits.before, edits.exact)


def test_equal_arguments_give_equal_edits_and_other_splits_others() -> None:
    edits = benchmark.load("toyworld/edits/toy_benchmark.py")
    first, shifted, other = edits("add", "held_out", 0, 4), edits("add", "held_out", 2, 2), edits("add", "train", 0, 4)
    assert first.instructions[2:] == shifted.instructions
    np.testing.assert_array_equal(first.before[2:], shifted.before)
    assert not np.array_equal(first.before, other.before)


def test_the_judge_accepts_the_exact_result_and_gives_a_reason_for_what_it_refuses(toy_edits: Callable[..., Benchmark]) -> None:
    edits = toy_edits("background", 3)
    right, unchanged = edits.judge(edits.exact), edits.judge(edits.before)
    assert (right.success.all(), right.reason) == (True, ("", "", ""))
    assert not unchanged.success.any()
    assert all(unchanged.reason)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("toyworld/edits/no_such_file.py", "want an importable Python file"),
        ("toyworld/edits/phrasings.py", "want a function edits in toyworld/edits/phrasings.py"),
        ("../edits.py", "want a Python file below the root"),
        ("edits.json", "want a Python file below the root"),
    ],
)
def test_a_file_without_edits_is_an_error(reference: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        benchmark.load(reference)
