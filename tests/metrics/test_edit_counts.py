"""How many edits of a benchmark are measured, and which are left out."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emuedit.config import ParamsError
from emuedit.metrics import benchmark
from emuedit.metrics.benchmark import EditCounts
from emuedit.metrics.judge_file import JudgeFile, calibrated_bounds
from emuedit.metrics.photo_benchmark import BenchmarkError, write_judge
from emuedit.metrics.similarity_judge import JudgeBounds
from emuedit.tasks import UnknownTaskError

ROWS = """\
a.png,local,make it red,a star,a red star,,
a.png,local,make it blue,a star,a blue star,,
a.png,local,make it shine,a star,A  star,,
a.png,local,make it round,a star,a star,b.png,
a.png,local,make it dark,a star,a dark star,,train
a.png,add,add a dog,a cat,a cat,,
"""


@pytest.fixture
def source(tmp_path: Path) -> benchmark.EditSource:
    """A folder with held-out edits of `local` (one of four has equal captions and no result) and `add` (the only one has)."""
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (16, 16), color).save(tmp_path / f"{name}.png")
    (tmp_path / "edits.csv").write_text(f"image,task,instruction,input_caption,output_caption,result,split\n{ROWS}")
    measured = {"local": calibrated_bounds(JudgeBounds())}
    write_judge(tmp_path, JudgeFile(clip="a/b", dino="c/d", size=16, measured=measured))
    return benchmark.load(str(tmp_path))


def test_edits_that_cannot_be_judged_are_counted_and_noted(source: benchmark.EditSource) -> None:
    assert isinstance(source, benchmark.CountingSource)
    assert source.count("local", "held_out") == EditCounts(in_table=4, usable=3)
    assert source.count("local", "train") == EditCounts(in_table=1, usable=1)
    assert source.count("add", "held_out") == EditCounts(in_table=1, usable=0)
    left_out = "left out, with equal captions and no result: 1 of 4 edits of local"
    assert benchmark.describe_judge(source, ["local"], "held_out") == left_out
    assert benchmark.describe_judge(source, ["local", "add"], "held_out") == f"{left_out}, 1 of 1 edits of add"
    assert benchmark.describe_judge(source, ["local"], "train") == ""


def test_without_a_number_all_usable_edits_are_measured(source: benchmark.EditSource) -> None:
    assert benchmark.n_to_measure(source, "local", "held_out", None) == 3
    assert benchmark.n_to_measure(source, "local", "held_out", 2) == 2
    with pytest.raises(BenchmarkError, match="want 1 edits of add that can be judged"):
        benchmark.n_to_measure(source, "add", "held_out", None)
    toy = benchmark.load("toyworld/edits/toy_benchmark.py")
    assert benchmark.n_to_measure(toy, "local", "held_out", 5) == 5
    with pytest.raises(BenchmarkError, match=r"want 4 edits of local .* \(if it is a number\), .* or add rows .* to edits.csv"):
        benchmark.n_to_measure(source, "local", "held_out", 4)
    with pytest.raises(UnknownTaskError):
        benchmark.n_to_measure(toy, "flying", "held_out", 5)
    with pytest.raises(ParamsError, match=r"evaluation\.n_edits: want a number, got null, which needs a benchmark with a table"):
        benchmark.n_to_measure(toy, "local", "held_out", None)


def test_a_benchmark_without_a_check_makes_one_edit_to_find_out_whether_it_has_them() -> None:
    calls: list[tuple[int, int]] = []

    def source(task: str, split: str, start: int, n: int) -> Any:
        calls.append((start, n))
        if start + n > 7:
            raise ValueError("7 edits")

    assert benchmark.n_to_measure(source, "local", "held_out", 7) == 7
    with pytest.raises(ValueError, match="7 edits"):
        benchmark.n_to_measure(source, "local", "held_out", 8)
    assert calls == [(6, 1), (7, 1)]
