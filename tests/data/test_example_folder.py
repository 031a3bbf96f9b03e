from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emuedit.data.example_folder import ExampleError, load_pictures, read_examples
from emuedit.data.text_tables import TableError


def write_picture(file: Path, size: tuple[int, int] = (12, 8), colour: int = 100) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(file)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs in before/ and after/."""
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "before" / name)
        write_picture(tmp_path / "after" / name, colour=200)
    return tmp_path


def test_pairs_of_equal_names_take_the_instructions_in_turn(pairs: Path) -> None:
    examples = read_examples(pairs, ["cut it out", "isolate it"])
    assert [(example.before.name, example.instruction) for example in examples] == [
        ("a.png", "cut it out"),
        ("b.png", "isolate it"),
    ]
    assert all(example.after == pairs / "after" / example.before.name for example in examples)
    pictures = load_pictures(examples, 8)
    assert pictures.before.shape == pictures.after.shape == (2, 8, 8, 3)
    assert np.unique(pictures.before[..., 0]).tolist() == [100]
    assert np.unique(pictures.after[..., 0]).tolist() == [200]


def test_a_table_names_pictures_and_instructions(pairs: Path) -> None:
    (pairs / "edits.csv").write_text(
        "\ufeffimage,result,instruction,note\nbefore/a.png,after/a.png,cut it out,x\n", encoding="utf-8"
    )
    (example,) = read_examples(pairs)
    assert (example.before, example.after, example.instruction) == (pairs / "before/a.png", pairs / "after/a.png", "cut it out")
    with pytest.raises(ExampleError, match="omit --instruction"):
        read_examples(pairs, ["again"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "image,result,text\na,b,c\n",
            "edits.csv: want the columns image, result, instruction, got none called instruction among image, result, text; ",
        ),
        ("image,Result,result,instruction\na,b,c,d\n", "differ in more than case and spaces, got image, Result, result, instr"),
        (
            "image;result;instruction\na;b;c\n",
            "got none called image, result, instruction among image;result;instruction; separate the columns by commas",
        ),
        ("image,result,instruction\n", "want rows, got none"),
        ("image,result,instruction\nbefore/a.png,after/c.png,x\n", "line 2: want an image in .* as result, got 'after/c.png'"),
        ("image,result,instruction\nbefore/a.png,after/a.png, \n", "line 2: want an instruction, got none"),
        ("image,result,instruction\nbefore/a.png\n", "line 2: want as many cells as the header has, got 'before/a.png'"),
        (
            "image,result,instruction\nbefore/a.png,after/a.png,cut it, please\n",
            "line 2: want as many cells .* got 'before/a.png,after/a.png,cut it, please'; put texts with commas in double",
        ),
    ],
)
def test_a_table_that_does_not_fit_names_line_and_column(table: str, message: str, pairs: Path) -> None:
    (pairs / "edits.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ExampleError, match=message):
        read_examples(pairs)


def test_columns_may_differ_in_case_and_spaces(pairs: Path) -> None:
    rows = ["Image, RESULT ,instruction,Input Caption", "before/a.png,after/a.png,cut it out,a mug"]
    (pairs / "edits.csv").write_text("\n".join(rows))
    (example,) = read_examples(pairs)
    assert (example.after, example.instruction, example.source_caption) == (pairs / "after/a.png", "cut it out", "a mug")


def test_names_with_other_suffixes_are_pairs_if_they_are_unique_without_them(pairs: Path) -> None:
    """Photographs are .jpg, and what an image editor saved is .png."""
    (pairs / "after/a.png").rename(pairs / "after/a.webp")
    examples = read_examples(pairs, ["x"])
    assert [(example.before.name, example.after.name) for example in examples] == [("a.png", "a.webp"), ("b.png", "b.png")]
    write_picture(pairs / "after" / "b.jpg")
    message = r"got a\.png, a\.webp, b\.jpg in one only; rename or convert them, or list the pairs in .*/edits\.csv"
    with pytest.raises(ExampleError, match=message):
        read_examples(pairs, ["x"])


def save_pair(folder: Path, before: np.ndarray, after: np.ndarray) -> Path:
    for part, pixels in (("before", before), ("after", after)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / part / "c.png")
    return folder


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A gradient with some soft waves, [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([80 + x % 100, 90 + y, 120 + 30 * np.sin(x / 5) * np.cos(y / 7)], -1).round().astype(np.int16)


def test_an_example_without_a_visible_edit_in_its_square_is_an_error(tmp_path: Path) -> None:
    """It would teach the task to change nothing."""
    wide = smooth_picture(32, 96)
    edited = wide.copy()
    edited[:, :32] = 255 - edited[:, :32]
    message = (
        r"want an edit in the centre square .* 32 px, got none: .*before/c.png and .*after/c.png {}; crop both images around"
    )
    with pytest.raises(ExampleError, match=message.format("hardly differ there")):
        load_pictures(read_examples(save_pair(tmp_path / "left", wide, edited), ["x"]), 32)
    with pytest.raises(ExampleError, match=message.format("are equal")):
        load_pictures(read_examples(save_pair(tmp_path / "equal", wide, wide), ["x"]), 32)
    folder = save_pair(tmp_path / "jpeg", wide, wide)
    Image.fromarray(wide.astype(np.uint8)).save(folder / "after/c.png", "JPEG", quality=90)
    with pytest.raises(ExampleError, match=message.format("hardly differ there")):
        load_pictures(read_examples(folder, ["x"]), 32)


@pytest.mark.parametrize("kind", ["tint", "sharpen", "small object", "noise"])
def test_subtle_edits_are_valid_examples(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    before = smooth_picture(64, 64)
    after = before.copy()
    if kind == "tint":
        after = before + np.array([3, 0, 0])
    elif kind == "sharpen":
        after[:, 30:34] += np.array([-20, 20, -20, 20])[:, None]  # its mean over a cell is 0
    elif kind == "small object":
        after[20:24, 20:24, 0] += 40
    else:
        after = (before + random.normal(0, 6, before.shape)).round()
    folder = save_pair(tmp_path, before, after)
    assert load_pictures(read_examples(folder, ["x"]), 64).after.shape == (1, 64, 64, 3)


def test_a_table_that_is_not_utf8_names_the_row(pairs: Path) -> None:
    rows = ["image,result,instruction", "before/a.png,after/a.png,cut it out", "before/b.png,after/b.png,dégagé"]
    (pairs / "edits.csv").write_text("\n".join(rows), encoding="latin-1")
    with pytest.raises(ExampleError, match=r"edits\.csv: line 3: want UTF-8, got 'before/b\.png.*d\?gag.*save the table as CSV"):
        read_examples(pairs)


def test_a_table_names_no_image_outside_of_its_folder(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are imported, exported and pushed, and another person may have written it."""
    folder, outside = pairs / "before", ("../after/a.png", str(pairs / "after/a.png"), "b/../../after/a.png", "")
    (folder / "edits.csv").write_text("\n".join(["image,result,instruction", *(f"a.png,{name},x" for name in outside)]))
    monkeypatch.chdir(folder)
    for place in (folder, Path()):
        with pytest.raises(ExampleError) as error:
            read_examples(place)
        for line, name in enumerate(outside, start=2):
            assert f"line {line}: want an image in {place} as result, got {name!r}" in str(error.value)
    (folder / "link.png").symlink_to("../after/a.png")  # as DVC's `cache.type symlink` writes them
    (folder / "edits.csv").write_text(f"image,result,instruction\n./a.png,link.png,x\n{folder}/b.png,link.png,x\n")
    assert [example.after for example in read_examples(folder)] == [folder / "link.png"] * 2


def test_captions_of_a_table_are_read_and_hidden_files_are_not(pairs: Path) -> None:
    (pairs / "edits.csv").write_text(
        'image,result,instruction,input_caption,output_caption\nbefore/a.png,after/a.png,cut it,"a mug, white",a mug\n'
    )
    (example,) = read_examples(pairs)
    assert (example.source_caption, example.target_caption) == ("a mug, white", "a mug")
    (pairs / "edits.csv").unlink()
    (pairs / "before/.DS_Store").write_bytes(b"")
    assert len(read_examples(pairs, ["x"])) == 2


def test_folders_that_do_not_fit_are_errors(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="want an instruction for the examples"):
        read_examples(pairs)
    (pairs / "after" / "b.png").unlink()
    with pytest.raises(ExampleError, match=r"want equal names .* got b\.png in one only"):
        read_examples(pairs, ["x"])
    with pytest.raises(ExampleError, match=r"edits\.csv with the columns"):
        read_examples(tmp_path / "none", ["x"])


def test_pictures_of_unequal_size_and_an_empty_table_are_errors(pairs: Path) -> None:
    write_picture(pairs / "after" / "b.png", (9, 9))
    with pytest.raises(ExampleError, match="want images of one size, got 12 x 8 and 9 x 9 px"):
        load_pictures(read_examples(pairs, ["x"]), 8)
    (pairs / "edits.csv").write_bytes(b"")
    with pytest.raises((ExampleError, TableError)):
        read_examples(pairs)
