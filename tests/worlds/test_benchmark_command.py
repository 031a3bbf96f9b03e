"""What `emuedit benchmark FOLDER` checks before it writes, and the bounds that `--calibrate` sets."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from emuedit import cli
from emuedit.metrics.judge_file import JudgeFile
from emuedit.metrics.photo_benchmark import PhotoBenchmark, read_judge, write_judge
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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


def test_only_tasks_with_enough_results_are_advised_to_calibrate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The advice led to an error."""
    write_judge(folder, JUDGE.model_copy(update={"bounds": JudgeBounds(), "task_bounds": {}}))
    assert cli.main(["benchmark", str(folder)]) == 0
    advice = "add --calibrate, and for remove a `result` to 4 or more edits with different captions of each task first"
    assert f"not measured: local, remove, background; {advice}\n" in capsys.readouterr().out
    table = (folder / "edits.csv").read_text()
    (folder / "edits.csv").write_text("".join(line for line in table.splitlines(keepends=True) if ",remove," not in line))
    assert cli.main(["benchmark", str(folder)]) == 0
    assert "not measured: local, background; add --calibrate\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", "weights/no/clip"], "judge's clip: want an existing file or folder, or a hub id .*, got 'weights/no/clip'"),
        (["--dino", "typo"], "judge's dino: want an existing file or folder, or a hub id .*, got 'typo'"),
        (["--dino", "before.png"], "judge's dino: want a folder or hub id, got the file 'before.png'"),
        (["--clip", "ViT-L-14/opnai"], "judge's clip: want 'ViT-L-14/<tag>' with a tag of .*; did you mean 'openai'"),
    ],
)
@pytest.mark.parametrize("has_judge", [True, False])
def test_models_that_do_not_exist_are_not_written(
    options: list[str],
    message: str,
    has_judge: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Later runs used the name in judge.yaml, and the evaluation failed."""
    monkeypatch.chdir(folder)
    if not has_judge:
        (folder / "judge.yaml").unlink()
        options = ["--clip", "a/b", "--dino", "c/d", *options]
    assert cli.main(["benchmark", ".", *options]) == 2
    assert re.search(f"{message}.*nothing was written", capsys.readouterr().err, re.DOTALL)
    assert (read_judge(folder) == JUDGE) if has_judge else not (folder / "judge.yaml").exists()


@pytest.mark.parametrize("has_judge", [True, False])
def test_a_size_out_of_range_is_one_line(has_judge: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not has_judge:
        (folder / "judge.yaml").unlink()
    assert cli.main(["benchmark", str(folder), "--clip", "a/b", "--dino", "c/d", "--size", "8"]) == 2
    assert capsys.readouterr().err == "emuedit: --size: Input should be greater than or equal to 16, got 8\n"


def test_a_missing_model_in_the_judges_file_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judge(folder, JUDGE.model_copy(update={"dino": "./weights/dino"}))
    assert cli.main(["benchmark", str(folder)]) == 2
    assert "got './weights/dino'" in capsys.readouterr().err
    assert cli.main(["benchmark", str(folder), "--dino", "c/d"]) == 0


def test_a_benchmark_without_an_edit_that_can_be_judged_gets_no_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "judge.yaml").unlink()
    (folder / "edits.csv").write_text("image,task,instruction,input_caption,output_caption\n" + "before.png,local,a,b,b\n" * 2)
    assert cli.main(["benchmark", str(folder), "--clip", "a/b", "--dino", "c/d"]) == 2
    output = capsys.readouterr()
    assert "in the lines 2 (local), 3 (local)" in output.out
    assert f"want an edit that can be judged in {folder}, got none of 2; nothing was written" in output.err
    assert not (folder / "judge.yaml").exists()


def test_a_folder_that_cannot_be_written_is_noticed_before_the_calibration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PhotoBenchmark, "calibrate", None)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert cli.main(["benchmark", str(folder), "--calibrate"]) == 2
    assert f"want a folder that can be written, got {folder}: Read-only file system; name another" in capsys.readouterr().err
    assert cli.main(["benchmark", str(folder)]) == 0, "it writes nothing"


def refuse(dir: Path) -> None:  # noqa: A002 - the name of tempfile
    raise OSError(errno.EROFS, "Read-only file system")
