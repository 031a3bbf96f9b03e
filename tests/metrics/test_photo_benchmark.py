"""A benchmark of real pictures: its table, its judge, and the bounds that are set from known results."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import cli
from emuedit.metrics import benchmark
from emuedit.metrics.judge_file import JudgeFile, calibrated_bounds
from emuedit.metrics.photo_benchmark import BenchmarkError, PhotoBenchmark, read_judge, write_judge
from emuedit.metrics.similarity_judge import JudgeBounds, SimilarityJudge, best_threshold, project_gains
from emuedit.models import clip, dino
from tests.repository import ROOT
from toyworld.edits.exact_edits import build_edits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("offline")]

N = 12
HEADER = "image,task,instruction,input_caption,output_caption"
CLIP, DINO = str(ROOT / "toyworld/weights/clip"), str(ROOT / "toyworld/weights/dino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edits of three tasks with their right results, as a team would collect them; the judge is calibrated."""
    folder = tmp_path_factory.mktemp("benchmark")
    with (folder / "edits.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "task", "instruction", "input_caption", "output_caption", "result"])
        for task in ("local", "background", "depth"):
            edits = build_edits(task, "held_out", 0, N)
            for number in range(N):
                names = [f"{task}{number}.png", f"{task}{number}-right.png"]
                for name, pixels in zip(names, (edits.before[number], edits.exact[number]), strict=True):
                    Image.fromarray(pixels).save(folder / name)
                captions = edits.input_captions[number], edits.output_captions[number]
                table.writerow([names[0], task, edits.instructions[number], *captions, names[1]])
    options = ["--clip", CLIP, "--dino", DINO, "--size", "64", "--calibrate"]
    assert cli.main(["benchmark", str(folder), *options]) == 0
    return folder


def write_one_edit(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "edits.csv").write_text(f"{HEADER}\na.png,local,a,b,c\n")


@pytest.mark.parametrize("task", ["local", "background"])
def test_right_results_are_accepted_and_unchanged_pictures_are_not(folder: Path, task: str) -> None:
    edits = PhotoBenchmark(folder)(task, "held_out", 0, N)
    assert edits.exact is not None
    assert edits.judge(edits.exact).success.mean() > 0.7
    unchanged = edits.judge(edits.before)
    assert not unchanged.success.any()
    assert "CLIP gain 0.000 below min_gain" in unchanged.reason[0]


def test_a_map_is_compared_with_its_right_result(folder: Path) -> None:
    edits = PhotoBenchmark(folder)("depth", "held_out", 0, N)
    assert edits.exact is not None
    assert edits.judge(edits.exact).success.all()
    assert "L1 to the reference result" in edits.judge(255 - edits.exact).reason[0]


def test_a_picture_without_the_box_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    """A box is thin: the picture before is near the right result, and was accepted."""
    before = np.full((1, 64, 64, 3), 90, np.uint8)
    right = before.copy()
    right[0, 20:40, 20:22] = right[0, 20:40, 38:40] = right[0, 20:22, 20:40] = right[0, 38:40, 20:40] = (255, 0, 255)
    shifted, pale = np.roll(right, 6, 2), (0.3 * before + 0.7 * right).astype(np.uint8)
    judge, captions = SimilarityJudge(clip.load(CLIP), dino.load(DINO), JudgeBounds()), (["a star"], ["a star in a box"])
    accepted = {
        name: judge.judge("detect", before, after, captions, list(right)).success.item()
        for name, after in {"before": before, "right": right, "shifted": shifted, "pale": pale}.items()
    }
    assert accepted == {"before": False, "right": True, "shifted": False, "pale": True}


def test_a_row_without_a_result_leaves_the_other_results_known(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, partial := tmp_path / "partial")
    lines = (partial / "edits.csv").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if "depth0-right.png" in line)
    lines[first] = lines[first].replace("depth0-right.png", "")
    (partial / "edits.csv").write_text("\n".join(lines))
    edits, complete = (PhotoBenchmark(place)("depth", "held_out", 0, N) for place in (partial, folder))
    assert edits.exact is None
    assert complete.exact is not None
    verdicts = edits.judge(255 - complete.exact)
    assert "right result" not in verdicts.reason[0]
    assert all("L1 to the reference result" in reason for reason in verdicts.reason[1:])
    assert edits.judge(complete.exact).success[1:].all()


def test_a_picture_whose_rest_changed_is_refused(folder: Path) -> None:
    edits = PhotoBenchmark(folder)("local", "held_out", 0, N)
    assert edits.exact is not None
    noise = np.random.default_rng(0).integers(0, 256, edits.exact.shape, np.uint8)
    assert all("the rest of the image changed: DINO" in reason for reason in edits.judge(noise).reason)


def test_the_folder_is_named_in_params_like_a_python_file(folder: Path) -> None:
    edits = benchmark.load(str(folder))("local", "held_out", 2, 3)
    assert edits.instructions == PhotoBenchmark(folder)("local", "held_out", 0, 5).instructions[2:]


def test_a_folder_whose_name_has_a_dot_is_a_folder(folder: Path, tmp_path: Path) -> None:
    dotted = tmp_path / "benchmark.v2"
    dotted.symlink_to(folder)
    assert benchmark.load(str(dotted))("local", "held_out", 0, 1).instructions


def test_more_edits_than_there_are_is_an_error_that_says_what_is_there(folder: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"want 13 edits of local .*, got 12; available: \{'local': 12, 'background'"):
        PhotoBenchmark(folder)("local", "held_out", 0, 13)
    with pytest.raises(BenchmarkError, match="want 1 edits of remove"):
        PhotoBenchmark(folder)("remove", "held_out", 0, 1)


def test_a_new_judge_has_the_models_and_the_size_of_the_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_one_edit(tmp_path)
    assert cli.main(["benchmark", ".", "--dino", "owner/dino"]) == 2
    assert "want --clip for a new judge without params.yaml" in capsys.readouterr().err
    assert not (tmp_path / "judge.yaml").exists()
    params = (ROOT / "params.yaml").read_text().replace("\ntrain:\n", "\ntrain:\n  resolution: 96\n")
    (tmp_path / "params.yaml").write_text(params)
    assert cli.main(["benchmark", ".", "--dino", "owner/dino"]) == 0
    judge = read_judge(tmp_path)
    assert (judge.clip, judge.dino, judge.size) == ("toyworld/weights/clip", "owner/dino", 96)
    assert "other values" not in capsys.readouterr().out
    (tmp_path / "params.yaml").write_text(params.replace("resolution: 96", "preset: sd15-256"))
    assert cli.main(["benchmark", "."]) == 0
    output = capsys.readouterr().out
    assert "judge.yaml differs from params.yaml: dino owner/dino (there toyworld/weights/dino), size 96 (there 256)" in output
    (tmp_path / "judge.yaml").unlink()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert cli.main(["benchmark", "."]) == 0
    assert read_judge(tmp_path).size == 64, "that of the base model's pictures, at which the toy world trains"


def test_a_folder_that_is_no_benchmark_gets_no_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 2
    assert f"want a table of edits at {tmp_path}/edits.csv" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_judge_that_cannot_tell_right_from_wrong_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results of one task are its inputs apart from noise, as if wrong files were named in the table."""
    shutil.copytree(folder, noisy := tmp_path / "noisy")
    for number in range(N):
        pixels = np.array(Image.open(noisy / f"local{number}.png"))
        Image.fromarray(pixels ^ 1).save(noisy / f"local{number}-right.png")
    capsys.readouterr()
    assert cli.main(["benchmark", str(noisy), "--calibrate"]) == 0
    output = capsys.readouterr().out
    assert "local: the judge barely separates correct results from wrong or unchanged ones" in output
    assert "background: the judge" not in output
    assert "uncalibrated, the judge's bounds are not measured: local" in output
    assert set(read_judge(noisy).task_bounds) == {"background", "depth"}


def test_bounds_are_kept_until_the_judge_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of --clip and --dino alone was ignored, and both threw the bounds away even if they were those of the file."""
    monkeypatch.chdir(tmp_path)
    write_one_edit(tmp_path)
    bounds = JudgeBounds(min_gain=0.3)
    measured = {"local": calibrated_bounds(bounds)}
    calibrated = JudgeFile(clip="a/b", dino="c/d", size=64, task_bounds={"local": bounds}, measured=measured)
    write_judge(tmp_path, calibrated)
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 0
    assert read_judge(tmp_path) == calibrated
    assert "bounds" not in capsys.readouterr().out
    assert cli.main(["benchmark", str(tmp_path), "--dino", "e/f"]) == 0
    assert read_judge(tmp_path) == JudgeFile(clip="a/b", dino="e/f", size=64)
    assert "the settings changed, so the bounds are removed" in capsys.readouterr().out


def test_without_a_judge_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"`emuedit benchmark .*` writes it"):
        PhotoBenchmark(tmp_path)


def test_pictures_of_any_size_are_cropped_and_scaled(tmp_path: Path) -> None:
    Image.new("RGB", (200, 90), "red").save(tmp_path / "a.jpg")
    (tmp_path / "judge.yaml").write_text(f"{{clip: {CLIP}, dino: {DINO}, size: 48}}\n")
    text = f"\ufeff{HEADER}\na.jpg,local,make it blue,a red wall,a blue wall\n"  # as spreadsheets write it
    (tmp_path / "edits.csv").write_text(text, encoding="utf-8")
    assert PhotoBenchmark(tmp_path)("local", "held_out", 0, 1).before.shape == (1, 48, 48, 3)


def test_the_gain_is_the_movement_along_the_captions() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert project_gains(east, north, east, north)[0] == pytest.approx(2**0.5)
    assert project_gains(east, east, east, north)[0] == 0
    assert project_gains(north, east, east, north)[0] == pytest.approx(-(2**0.5))
    assert project_gains(east, north, east, east)[0] == -2, "equal captions say nothing"


def test_the_threshold_separates_best() -> None:
    assert best_threshold(np.array([0.5, 0.6, 0.7]), np.array([0.0, 0.1, 0.2])) == pytest.approx(0.35)
    assert best_threshold(np.array([0.5, 0.6, 0.05]), np.array([0.0, 0.1, 0.2])) == pytest.approx(0.35)


def test_too_few_edits_are_not_calibrated_from() -> None:
    judge = SimilarityJudge(clip.load(CLIP), dino.load(DINO), JudgeBounds())
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="want at least four edits of local with reference results"):
        judge.calibrate("local", pictures, pictures, (["a"] * 3, ["b"] * 3))
