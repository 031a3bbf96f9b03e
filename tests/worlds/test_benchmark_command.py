"""The bounds that `emuedit benchmark FOLDER --calibrate` writes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from emuedit import cli
from emuedit.metrics.photo_benchmark import JudgeFile, PhotoBenchmark, read_judge, write_judge
from emuedit.metrics.similarity_judge import Calibration, JudgeBounds

N_EDITS = {"local": 4, "remove": 2, "background": 4}
MEASURED = {"min_gain": 0.2, "min_dino": 0.9}
JUDGE = JudgeFile(
    clip="a/b",
    dino="c/d",
    size=16,
    bounds=JudgeBounds(max_left=0.4),
    task_bounds={
        "local": JudgeBounds(min_gain=0.1, max_left=0.3),
        "remove": JudgeBounds(max_left=0.2),
        "add": JudgeBounds(min_gain=0.3),
        "background": JudgeBounds(min_gain=0.3, max_left=0.4),
    },
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark whose calibration separates for all tasks except `background`; no model is loaded."""

    def calibrate(benchmark: PhotoBenchmark, task: str, rows: Sequence[object]) -> Calibration:
        bounds = benchmark.settings.bounds.model_copy(update=MEASURED)
        return Calibration(task, bounds, 1.0, 1.0 if task == "background" else 0.0, 0.0, len(rows))

    monkeypatch.setattr(PhotoBenchmark, "calibrate", calibrate)
    for name in ("before", "after"):
        Image.new("RGB", (16, 16), (len(name), 0, 0)).save(tmp_path / f"{name}.png")
    rows = "".join(n * f"before.png,{task},a,b,c,after.png\n" for task, n in N_EDITS.items())
    (tmp_path / "edits.csv").write_text(f"image,task,instruction,input_caption,output_caption,result\n{rows}")
    write_judge(tmp_path, JUDGE)
    return tmp_path


def test_a_calibration_keeps_what_was_set_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the measured bounds of calibrated tasks change: `remove` has too few edits, `add` has none."""
    assert cli.main(["benchmark", str(folder), "--calibrate"]) == 0
    judge = read_judge(folder)
    assert judge.bounds == JUDGE.bounds
    assert judge.task_bounds == {
        "local": JudgeBounds(**MEASURED, max_left=0.3),
        "remove": JUDGE.task_bounds["remove"],
        "add": JUDGE.task_bounds["add"],
    }, "the earlier bounds of `background` are wrong"
    assert "the judge's bounds are not measured: remove, background" in capsys.readouterr().out


def test_a_task_without_earlier_bounds_gets_the_others_of_all_tasks(folder: Path) -> None:
    write_judge(folder, JUDGE.model_copy(update={"task_bounds": {}}))
    assert cli.main(["benchmark", str(folder), "--calibrate"]) == 0
    assert read_judge(folder).task_bounds == {"local": JudgeBounds(**MEASURED, max_left=0.4)}
