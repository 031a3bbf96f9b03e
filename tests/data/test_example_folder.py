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
        ("image,result\na,b\n", "edits.csv: want the columns image, result, instruction, got none called instruction"),
        ("image;result;instruction\na;b;c\n", "got none called image, result, instruction; separate the columns by commas"),
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


def test_a_table_that_is_not_utf8_names_the_row(pairs: Path) -> None:
    rows = ["image,result,instruction", "before/a.png,after/a.png,cut it out", "before/b.png,after/b.png,dégagé"]
    (pairs / "edits.csv").write_text("\n".join(rows), encoding="latin-1")
    with pytest.raises(ExampleError, match=r"edits\.csv: line 3: want UTF-8, got 'before/b\.png.*d\?gag.*save the table as CSV"):
        read_examples(pairs)


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
