"""The table of a benchmark of real pictures: which rows are refused, which are left out, and whether the judge is calibrated."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emuedit import cli
from emuedit.data import image_io
from emuedit.metrics import benchmark, photo_benchmark
from emuedit.metrics.judge_file import JudgeFile, calibrated_bounds
from emuedit.metrics.photo_benchmark import BenchmarkError, PhotoBenchmark, read_judge, read_rows, write_judge
from emuedit.metrics.similarity_judge import JudgeBounds

pytestmark = pytest.mark.usefixtures("offline")

HEADER = "image,task,instruction,input_caption,output_caption"


def write_one_edit(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "edits.csv").write_text(f"{HEADER}\na.png,local,a,b,c\n")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,task\na.png,local\n", "got none called instruction, input_caption, output_caption among image, task"),
        (f"{HEADER}\n", "want rows, got none"),
        (f"{HEADER}\nno.png,local,a,b,c\n", "line 2: want an image in .* got 'no.png'"),
        (f"{HEADER}\n{__file__},local,a,b,c\n", "line 2: want an image in .* as image, got '/"),
        (f"{HEADER},result\na.png,local,a,b,c,{__file__}\n", "line 2: want an image in .* as result, got '/"),
        (f"{HEADER}\na.png,locl,a,b,c\n", "want one of the tasks local, .*; got 'locl' in line 2; did you mean 'local'"),
        (f"{HEADER}\na.png,local,,b,c\n", "line 2: want a text as instruction, got none"),
        (f"{HEADER}\na.png,local,a,, \n", "line 2: want a text as input_caption and output_caption, got none"),
        (f"{HEADER}\na.png,local,a,b\n", "line 2: want as many cells as the header has, got 'a.png,local,a,b'"),
        (
            f"{HEADER}\na.png,local,a,a mug, white,a mug, blue\n",
            "line 2: want as many cells .* texts with commas in double quotes",
        ),
        (f"{HEADER},split\na.png,local,a,b,c,test\n", "want one of the splits train, held_out"),
    ],
)
def test_a_wrong_table_is_an_error_with_line_and_column(table: str, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "judge.yaml").write_text("{clip: a, dino: b}\n")
    (tmp_path / "edits.csv").write_text(table)
    with pytest.raises(BenchmarkError, match=message):
        PhotoBenchmark(tmp_path)


def test_unknown_tasks_are_listed_once_with_their_lines(tmp_path: Path) -> None:
    """Each line repeated the names of all tasks."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rows = ["a.png,erase,a,b,c"] * 16 + ["a.png,local,a,b,c", "a.png,styl,a,b,c", "a.png,local,,b,c"]
    (tmp_path / "edits.csv").write_text("\n".join([HEADER, *rows]))
    with pytest.raises(BenchmarkError) as error:
        read_rows(tmp_path)
    assert str(error.value).count("cutout") == 1
    lines = "got 'erase' in lines 2, 3, 4, 5, 6, ... (16); 'styl' in line 19; did you mean 'style'?; line 20: want a text"
    assert lines in str(error.value)


def test_columns_may_differ_in_case_and_spaces(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "edits.csv").write_text("Image,Task,Instruction,Input Caption,output_caption ,Split\na.png,local,a,b,c,train\n")
    assert [(row["input_caption"], row["output_caption"], row["split"]) for row in read_rows(tmp_path)] == [("b", "c", "train")]


def test_a_table_that_is_not_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "edits.csv").write_text(f"{HEADER}\na.png,local,a,b,c\na.png,local,a,b,café\n", encoding="latin-1")
    with pytest.raises(BenchmarkError, match=r"edits\.csv: line 3: want UTF-8, got 'a\.png.*save the table as CSV in UTF-8"):
        read_rows(tmp_path)


def test_images_that_cannot_be_decoded_are_named_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the evaluation found them, after the training."""
    for name in ("a.png", "b.jpg", "c.jpg"):
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    rows = ["a.png,local,a,b,c,", "b.jpg,local,a,b,c,", "a.png,local,a,b,c,c.jpg", "b.jpg,local,d,b,c,"]
    (tmp_path / "edits.csv").write_text("\n".join([f"{HEADER},result", *rows]))
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 2
    message = capsys.readouterr().err
    assert f"edits.csv: line 3: {tmp_path}/b.jpg is damaged" in message
    assert f"; line 4: {tmp_path}/c.jpg is damaged" in message
    assert "line 5" not in message, "the same file"
    assert not (tmp_path / "judge.yaml").exists()


def test_an_empty_split_is_the_default_one(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "edits.csv").write_text(f"{HEADER},split\na.png,local,a,b,c,\na.png,local,a,b,c,train\n")
    assert [row["split"] for row in read_rows(tmp_path)] == ["held_out", "train"]


def test_edits_that_cannot_be_judged_are_listed_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge rejected each of their outputs."""
    for name, colour in (("a.png", "black"), ("copy.png", "black"), ("b.png", "white")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / name)
    rows = ["a.png,depth,a,a dog,A  Dog,", "a.png,depth,a,a dog,a dog,b.png", "a.png,local,a,a dog,a cat,"]
    rows.append("a.png,color,a,a dog,a dog,copy.png")
    (tmp_path / "edits.csv").write_text("\n".join([f"{HEADER},result", *rows]))
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 0
    output = capsys.readouterr().out
    assert "2 of 4 edits are not used, because they cannot be judged: their captions are equal" in output
    assert "in the lines 2 (depth), 5 (color)" in output
    assert "0.00 of the unedited images are accepted in 1 edits compared with their result" in output
    edits = PhotoBenchmark(tmp_path)
    assert [row["task"] for row in edits.rows] == ["depth", "local"]
    with pytest.raises(BenchmarkError, match="want 2 edits of depth that can be judged in the split held_out"):
        edits("depth", "held_out", 0, 2)


def test_a_result_with_the_pixels_of_its_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.bmp")
    (tmp_path / "edits.csv").write_text(f"{HEADER},result\na.png,color,a,a dog,a dog,a.bmp\n")
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 0
    assert "where the result equals the image: replace it in the lines 2 (color)" in capsys.readouterr().out


def test_the_accepted_share_of_unedited_images_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, grey in (("a.png", 100), ("b.png", 110)):
        Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / name)
    (tmp_path / "edits.csv").write_text(f"{HEADER},result\na.png,color,a,a dog,a dog,b.png\n")
    write_judge(tmp_path, JudgeFile(clip="a/b", dino="c/d", bounds=JudgeBounds(max_left=1)))
    assert cli.main(["benchmark", str(tmp_path)]) == 0
    assert (
        "1.00 of the unedited images are accepted in 1 edits compared with their result: the lines 2" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("image", "result", "orientation", "is_refused"),
    [
        ((200, 90), (90, 90), 1, True),
        ((200, 90), (90, 200), 1, True),
        ((200, 90), (90, 200), 6, False),
        ((200, 90), (200, 90), 6, True),
        ((200, 90), (100, 45), 1, False),
        ((400, 267), (40, 27), 1, False),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_result_shows_the_same_part_as_its_image(
    image: tuple[int, int], result: tuple[int, int], orientation: int, is_refused: bool, suffix: str, tmp_path: Path
) -> None:
    """Both were cropped to their centre squares, which were compared although they show other parts."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", image).save(tmp_path / f"a.{suffix}", exif=exif)
    Image.new("RGB", result, "white").save(tmp_path / "b.png")
    (tmp_path / "edits.csv").write_text(f"{HEADER},result\na.{suffix},local,a,b,c,b.png\n")
    if is_refused:
        with pytest.raises(BenchmarkError, match=r"line 2: want a result with the aspect ratio of its image, got \d+ x \d+ of b"):
            read_rows(tmp_path)
    else:
        assert read_rows(tmp_path)[0]["result"] == "b.png"


def test_captions_that_differ_beyond_the_context_of_clip_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CLIP gave both the same embedding, so the judge rejected each of their outputs."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "b.png")
    words = "very " * 80
    captions = f"a,{words}red,{words}blue"
    rows = [f"a.png,local,{captions},", f"a.png,local,{captions},b.png", f"a.png,local,a,red {words},blue {words},"]
    rows.append(f"a.png,local,a,{'very ' * 20}red,{'very ' * 20}blue,")  # long, but within the context
    (tmp_path / "edits.csv").write_text("\n".join([f"{HEADER},result", *rows]))
    assert cli.main(["benchmark", str(tmp_path), "--clip", "ViT-L-14/openai", "--dino", "c/d"]) == 0
    output = capsys.readouterr().out
    assert "1 of 4 edits are not used" in output
    assert "in the lines 2 (local)" in output
    assert "in 1 edits compared with their result" in output
    with pytest.raises(BenchmarkError, match=r"want 4 edits of local that can be judged in the split held_out of .*, got 3"):
        PhotoBenchmark(tmp_path).check("local", "held_out", 4)


def test_an_unknown_split_is_an_error_that_names_the_splits(tmp_path: Path) -> None:
    write_edits(tmp_path)
    with pytest.raises(BenchmarkError, match=r"want one of the splits train, held_out of .*, got 'test'"):
        PhotoBenchmark(tmp_path).check("local", "test", 3)


def test_bounds_that_accept_unchanged_images_are_an_error(tmp_path: Path) -> None:
    write_edits(tmp_path)
    (tmp_path / "judge.yaml").write_text("{clip: a/b, dino: c/d, task_bounds: {local: {min_gain: -0.01}}}\n")
    with pytest.raises(
        BenchmarkError, match=r"judge\.yaml: task_bounds\.local\.min_gain: .* greater than 0, got -0\.01; correct"
    ):
        read_judge(tmp_path)


def test_without_results_nothing_is_calibrated_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command failed after it had written a judge with default bounds, which later runs accepted."""
    write_one_edit(tmp_path)
    options = ["--clip", "a/b", "--dino", "c/d"]
    assert cli.main(["benchmark", str(tmp_path), *options, "--calibrate"]) == 2
    message = "want 4 edits with results and different captions of one task to calibrate from, got 0 of local in"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "judge.yaml").exists()
    judge = JudgeFile(clip="e/f", dino="c/d", task_bounds={"local": JudgeBounds(min_gain=0.3)})
    write_judge(tmp_path, judge)
    assert cli.main(["benchmark", str(tmp_path), *options, "--calibrate"]) == 2
    assert read_judge(tmp_path) == judge, "another judge is not calibrated, so this one is kept"


def test_an_uncalibrated_judge_is_named_when_it_is_written_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_one_edit(tmp_path)
    with (tmp_path / "edits.csv").open("a") as table:
        table.write("a.png,remove,a,b,c\n")
    assert cli.main(["benchmark", str(tmp_path), "--clip", "a/b", "--dino", "c/d"]) == 0
    advice = "add a `result` to 4 or more edits with different captions of each task, then --calibrate"
    assert f"uncalibrated, the judge's bounds are not measured: local, remove; {advice}\n" in capsys.readouterr().out
    benchmark.load(str(tmp_path))
    assert "benchmark: uncalibrated judge, its bounds for local, remove are not measured" in capsys.readouterr().out


def test_bounds_that_are_set_by_hand_are_not_calibrated(tmp_path: Path) -> None:
    write_one_edit(tmp_path)
    by_hand, measured = JudgeBounds(max_left=0.3, min_gain=0.1), JudgeBounds(min_dino=0.6)
    record = {"local": calibrated_bounds(measured)}

    def uncalibrated(bounds: JudgeBounds, **changes: Any) -> tuple[str, ...]:
        settings = JudgeFile(clip="a/b", dino="c/d", bounds=bounds, **changes)
        return PhotoBenchmark(tmp_path, settings=settings).uncalibrated_tasks

    assert uncalibrated(JudgeBounds()) == uncalibrated(by_hand) == uncalibrated(measured) == ("local",)
    assert uncalibrated(JudgeBounds(), task_bounds={"local": measured}, measured=record) == ()
    changed = measured.model_copy(update={"min_gain": 0.1})
    assert uncalibrated(JudgeBounds(), task_bounds={"local": changed}, measured=record) == ("local",)
    looser = measured.model_copy(update={"max_left": 0.3})
    assert uncalibrated(JudgeBounds(), task_bounds={"local": looser}, measured=record) == (), "no calibration measures max_left"


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are read; no model is loaded."""
    names: list[str] = []
    read_image = image_io.read_image

    def read(file: Path) -> image_io.LoadedImage:
        names.append(file.name)
        return read_image(file)

    monkeypatch.setattr(image_io, "read_image", read)
    monkeypatch.setattr(PhotoBenchmark, "similarity_judge", None)
    monkeypatch.setattr(photo_benchmark, "_squares", photo_benchmark._SquareCache())
    return names


def write_edits(folder: Path, size: int = 16) -> None:
    for name in "abc":
        Image.new("RGB", (40, 20), (ord(name), 0, 0)).save(folder / f"{name}.png")
    rows = "".join(f"{name}.png,local,a,b,c,c.png\n" for name in "ab")
    (folder / "edits.csv").write_text(f"{HEADER},result\n{rows}")
    write_judge(folder, JudgeFile(clip="a/b", dino="c/d", size=size))


def test_edits_are_counted_without_reading_an_image(tmp_path: Path, read_files: list[str]) -> None:
    write_edits(tmp_path)
    source = benchmark.load(str(tmp_path))
    benchmark.check_edits(source, "local", "held_out", 2)
    with pytest.raises(BenchmarkError, match="want 3 edits of local"):
        benchmark.check_edits(source, "local", "held_out", 3)
    assert read_files == []


def test_each_image_is_read_once_in_a_process(tmp_path: Path, read_files: list[str]) -> None:
    write_edits(tmp_path)
    first, second = (benchmark.load(str(tmp_path))("local", "held_out", 0, 2) for _ in range(2))
    assert sorted(read_files) == ["a.png", "b.png", "c.png"]
    assert (first.before == second.before).all()
    assert first.before[:, 0, 0, 0].tolist() == [ord("a"), ord("b")]
    assert first.exact is not None
    assert first.exact[:, 0, 0, 0].tolist() == [ord("c"), ord("c")]


def test_another_file_or_size_is_read_again(tmp_path: Path, read_files: list[str]) -> None:
    write_edits(tmp_path)
    benchmark.load(str(tmp_path))("local", "held_out", 0, 1)
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    assert (benchmark.load(str(tmp_path))("local", "held_out", 0, 1).before == 255).all()
    write_judge(tmp_path, JudgeFile(clip="a/b", dino="c/d", size=18))
    assert benchmark.load(str(tmp_path))("local", "held_out", 0, 1).before.shape == (1, 18, 18, 3)
    assert read_files.count("a.png") == 3


def test_the_memory_of_the_cache_is_bounded(tmp_path: Path, read_files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_edits(tmp_path)
    monkeypatch.setattr(photo_benchmark, "MAX_CACHED_BYTES", 16 * 16 * 3)
    for _ in range(2):
        benchmark.load(str(tmp_path))("local", "held_out", 0, 2)
    assert read_files.count("a.png") == 1, "the first image stays in the cache"
    assert read_files.count("b.png") > 1
