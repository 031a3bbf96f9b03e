"""`emuedit init` counts captions that later stages drop or refuse, and reads a row of a dataset's folder."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from emuedit import cli


def init(*arguments: str) -> int:
    return cli.main(["init", "captions.txt", "--no-pin", *arguments])


def read_params(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    return params


@pytest.mark.slow
def test_captions_that_are_too_long_are_counted_and_not_trained_for(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Captions of a vision language model often have more words: the stage `captions` then dropped them all."""
    short = [f"a dog number {number} at a lake" for number in range(100)]
    texts = [" ".join([caption] * 7) for caption in short] + [" ".join([caption] * 9) for caption in short] + short
    (clone / "captions.txt").write_text("\n".join(texts))
    assert init("--n-captions", "300") == 0
    output = capsys.readouterr().out
    assert "captions.max_words: 200 of 300 captions have more than 45 words and will be dropped; shorten them, or" in output
    assert "dropped later as caption_too_long" in output
    assert "instructions.n_captions: 100, all that are not dropped of captions.txt; got --n-captions 300" in output
    assert read_params(clone)["instructions"]["n_captions"] == 100
    assert "# 21 passes over about 390 kept pairs; 500 steps are the minimum" in (clone / "params.yaml").read_text()
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("max_words: 45 ", "max_words: 50 "))
    assert init("--overwrite") == 0
    assert "captions.max_words: 100 of 300 captions have more than 50 words" in capsys.readouterr().out
    assert (read_params(clone)["captions"]["max_words"], read_params(clone)["instructions"]["n_captions"]) == (50, 200)


@pytest.mark.slow
def test_captions_that_are_all_too_long_and_those_of_a_large_file_are_counted(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = " ".join(["dog"] * 50), "a dog at a lake"
    (clone / "captions.txt").write_text(f"{long}\n" * 300)
    assert init() == 0
    assert "300 of 300 captions have more than 45 words" in capsys.readouterr().out
    assert (read_params(clone)["instructions"]["n_captions"], read_params(clone)["train"]["steps"]) == (1, 500)
    (clone / "captions.txt").write_text(f"{long}\n{short}\n" * 6_000)
    assert init("--overwrite", "--n-captions", "9000") == 0
    assert "captions.max_words: 5000 of the first 10000 captions have more than 45 words" in capsys.readouterr().out
    assert read_params(clone)["instructions"]["n_captions"] == 6_000


GERMAN = [f"ein brauner Hund liegt neben Stuhl {number} auf dem Teppich" for number in range(12)]
ENGLISH = [f"a man with a hat sits on bench number {number} in the park" for number in range(88)]


@pytest.mark.slow
def test_captions_in_a_language_that_the_validation_refuses_are_named(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stage validation stopped after the pairs of all captions were made and paid for."""
    (clone / "captions.txt").write_text("\n".join(GERMAN + ENGLISH))
    assert init() == 0
    note = "validation.languages: 12 of 100 captions are probably in none of en; the stage validation stops above a share of 0.1"
    assert note in capsys.readouterr().out
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("languages: [en]", "languages: [en, de]"))
    assert init("--overwrite") == 0
    assert "in none of" not in capsys.readouterr().out
    (clone / "params.yaml").write_text(text.replace("captions:\n  n_rows", "captions:\n  languages: [en]\n  n_rows"))
    assert init("--overwrite", "--n-captions", "100") == 0
    output = capsys.readouterr().out
    assert "captions.languages: 12 of 100 captions are probably in none of en and will be dropped" in output
    assert "validation.languages" not in output
    assert "instructions.n_captions: 88, all that are not dropped" in output


SHORT = [
    "a red car", "a man rides a horse", "two cats", "an old door", "my bike", "Berlin at night", "a plate of sushi",
    "kitchen interior", "a dog at a lake", "sunset over Paris",
]  # fmt: skip
SHORT_GERMAN = ["ein rotes Auto", "ein Mann reitet ein Pferd"]


@pytest.mark.slow
def test_short_captions_are_not_said_to_be_in_another_language(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, most of them seem to be; the stage validation tests them with their instructions, and does not stop."""
    (clone / "captions.txt").write_text("\n".join(SHORT))
    assert init() == 0
    assert "validation.languages" not in capsys.readouterr().out
    (clone / "captions.txt").write_text("\n".join([*SHORT[:5], SHORT_GERMAN[0], *SHORT[5:], SHORT_GERMAN[1]]))
    assert init("--overwrite") == 0
    assert "validation.languages: 2 of 12 captions are probably in none of en" in capsys.readouterr().out


@pytest.mark.slow
def test_captions_without_spaces_are_too_short(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They counted as usable, and the stage `captions` dropped them."""
    (clone / "captions.txt").write_text("ソファの上の犬\n湖のほとりの家\n" + "\n".join(ENGLISH), encoding="utf-8")
    assert init() == 0
    assert "captions.min_words: 2 of 90 captions have fewer than 2 words and will be dropped" in capsys.readouterr().out
    assert read_params(clone)["instructions"]["n_captions"] == 88
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("captions:\n  n_rows", "captions:\n  min_words: 1\n  n_rows"))
    assert init("--overwrite") == 0
    assert "captions have fewer" not in capsys.readouterr().out
    assert read_params(clone)["instructions"]["n_captions"] == 90


@pytest.mark.slow
def test_invalid_params_of_captions_do_not_hinder_the_count(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("max_words: 45 ", "max_words: many "))
    assert init("--overwrite") == 0
    assert "max_words" in capsys.readouterr().out
    assert read_params(clone)["instructions"]["n_captions"] == 3


@pytest.mark.slow
def test_the_column_of_a_folder_is_checked_too(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / "pictures").mkdir()
    pq.write_table(pa.table({"text": ["a dog at a lake"]}), clone / "pictures/train-0.parquet")
    before = (clone / "params.yaml").read_bytes()
    assert cli.main(["init", "pictures", "--no-pin"]) == 2
    assert "want key 'caption' in pictures, got ['text'] in row 1; set captions.column" in capsys.readouterr().err
    assert (clone / "params.yaml").read_bytes() == before
    assert cli.main(["init", "pictures", "--column", "text", "--no-pin"]) == 0


@pytest.mark.slow
def test_blank_and_unreadable_rows_are_no_captions(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were counted, and the stage `captions` dropped them."""
    (clone / "captions.txt").write_bytes("a dog at a lake\n\n  \nun café au lac\nun été\na cat\n".encode("latin-1"))
    assert init() == 0
    output = capsys.readouterr().out
    assert "captions.txt: 2 of 6 rows cannot be read and will be dropped: not UTF-8, save the file in UTF-8 (2)" in output
    assert read_params(clone)["instructions"]["n_captions"] == 2
    before = (clone / "params.yaml").read_bytes()
    for content, message in (
        (b"\n \n", "want one caption per line or row, got none in captions.txt\n"),
        (b"caf\xe9\n", "got none in captions.txt; captions.txt: 1 of 1 rows cannot be read and will be dropped: not UTF-8"),
    ):
        (clone / "captions.txt").write_bytes(content)
        assert init("--overwrite") == 2
        assert message in capsys.readouterr().err
    assert (clone / "params.yaml").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cap.jpg", "table.xlsx", "captions"])
def test_files_of_other_kinds_are_no_captions(name: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / name).write_bytes(b"x")
    before = (clone / "params.yaml").read_bytes()
    assert cli.main(["init", name, "--no-pin"]) == 2
    message = f"want a caption source .txt, .csv, .jsonl, .parquet, .yaml, .py, or a dataset's folder; got {name}"
    assert message in capsys.readouterr().err
    assert (clone / "params.yaml").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table.csv", "table.jsonl", "table.parquet"])
def test_a_column_that_differs_in_case_is_named(name: str, clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "table.parquet":
        pq.write_table(pa.table({"Caption": ["a dog at a lake"]}), clone / name)
    else:
        rows = {"table.csv": "id,Caption\n1,a dog at a lake\n", "table.jsonl": '{"id": 1, "Caption": "a dog at a lake"}\n'}
        (clone / name).write_text(rows[name])
    assert cli.main(["init", name, "--no-pin"]) == 2
    assert "or --column of `emuedit init`; did you mean 'Caption'?" in capsys.readouterr().err
