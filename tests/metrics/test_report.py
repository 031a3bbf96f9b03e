import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emuedit.data.contact_sheet import BAD_COLOR, GOOD_COLOR
from emuedit.data.png import encode_png
from emuedit.data.records import EvalRecord
from emuedit.data.word_list import load_word_list
from emuedit.metrics import report
from emuedit.metrics.edit_scores import METRICS
from emuedit.metrics.success_table import format_success, success_with_slices

BLACK, GREY, BLUE = (encode_png(np.full((16, 16, 3), color, np.uint8)) for color in ((0, 0, 0), (90, 90, 90), (10, 20, 200)))


def make_record(task: str, success: bool, **changes: Any) -> EvalRecord:
    fields: dict[str, Any] = {
        "system": "s", "instruction": f"{task} it", "source_caption": "", "target_caption": "", "given_task": task, "seed": 0,
        "source": BLACK, "output": GREY, "exact": BLUE, "reason": "" if success else "no",
        "scores": dict.fromkeys(METRICS, 0.5),
    }  # fmt: skip
    return EvalRecord(task=task, success=success, **(fields | changes))


def test_every_task_has_the_same_weight_and_tasks_of_inversion_do_not_count() -> None:
    records = [make_record("remove", True)] * 3 + [make_record("add", False)] + [make_record("contour", True)] * 4
    table = report.summarise(records, ("remove", "add", "contour"))["edit_success"]["s"]
    assert table == {"overall": 0.5, "remove": 1.0, "add": 0.0, "contour": 1.0}


def test_there_is_a_table_for_success_the_task_predictor_and_every_metric() -> None:
    scores = {"clip_dir": 0.1, "clip_im": 0.2, "clip_out": 0.3, "l1": 0.4, "dino": 0.5}
    records = [make_record("add", True, scores=scores), make_record("add", False, given_task="local", scores=scores)]
    tables = report.summarise(records, ("add",))
    assert set(tables) == {"edit_success", "router", "refused", *scores}
    assert tables["router"]["s"] == {"overall": 0.5, "add": 0.5}
    for name, value in scores.items():
        assert tables[name]["s"] == {"overall": value, "add": value}


def test_undefined_values_are_left_out_and_counted() -> None:
    undefined = dict.fromkeys(METRICS, 0.4) | {"clip_dir": None, "dino": None}
    records = [
        make_record("add", True),
        make_record("add", True, scores=undefined),
        make_record("remove", True, scores=undefined),
        make_record("contour", True, scores=undefined),
    ]
    tables = report.summarise(records, ("add", "remove", "contour"))
    assert tables["clip_dir"]["s"] == {"overall": 0.5, "add": 0.5, "remove": None, "contour": None}
    assert tables["undefined_dino"]["s"] == {"overall": 2.0, "add": 1.0, "remove": 1.0, "contour": 1.0}
    assert "undefined_l1" not in tables


def test_a_clip_direction_is_undefined_for_equal_captions_or_an_unchanged_image(tmp_path: Path) -> None:
    """The former is a property of the benchmark, the latter of the system; both counts are in the CSV file."""
    undefined = dict.fromkeys(METRICS, 0.4) | {"clip_dir": None, "clip_im": 1 - 1e-7}
    captions = {"source_caption": "a red circle", "target_caption": "a blue circle"}
    records = [
        make_record("add", True, **captions),
        make_record("add", True, **captions, scores=undefined),
        make_record("add", True, source_caption="A  dog", target_caption="a dog", scores=undefined),
        make_record("remove", True, **captions, scores=undefined),
        make_record("contour", True, **captions),
    ]
    tables = report.summarise(records, ("add", "remove", "contour"))
    equal, unchanged = "undefined_clip_dir_equal_captions", "undefined_clip_dir_unchanged_image"
    assert tables[equal]["s"] == {"overall": 1.0, "add": 1.0, "remove": 0.0, "contour": 0.0}
    assert tables[unchanged]["s"] == {"overall": 2.0, "add": 1.0, "remove": 1.0, "contour": 0.0}
    report.write_csv(tmp_path / "metrics.csv", tables)
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = {row["task"]: row for row in csv.DictReader(stream)}
    assert [(rows[task][equal], rows[task][unchanged]) for task in ("overall", "add")] == [("1.0", "2.0"), ("1.0", "1.0")]


@pytest.mark.parametrize(("similarity", "cause"), [(0.5, "equal_captions"), (1.0, "unchanged_image"), (None, "unchanged_image")])
def test_captions_that_clip_reads_as_equal_are_no_unchanged_image(similarity: float | None, cause: str) -> None:
    """They differ only beyond CLIP's 77 tokens, and the image changed: its CLIPim is not 1."""
    captions = {"source_caption": "very " * 80 + "red", "target_caption": "very " * 80 + "blue"}
    scores = dict.fromkeys(METRICS, 0.4) | {"clip_dir": None, "clip_im": similarity}
    tables = report.summarise([make_record("add", True, **captions, scores=scores)], ("add",))
    causes = {name for name in tables if name.startswith("undefined_clip_dir")}
    assert causes == {f"undefined_clip_dir_{cause}"}


def test_systems_are_kept_apart_and_in_their_order() -> None:
    records = [make_record("add", True, system="b"), make_record("add", False, system="a"), make_record("add", True, system="b")]
    table = report.summarise(records, ("add", "remove"))["edit_success"]
    assert list(table) == ["b", "a"]
    assert table == {"b": {"overall": 1.0, "add": 1.0, "remove": None}, "a": {"overall": 0.0, "add": 0.0, "remove": None}}


def test_the_csv_file_has_a_row_for_every_system_and_task(tmp_path: Path) -> None:
    undefined = dict.fromkeys(METRICS, 0.4) | {"clip_dir": None}
    records = [make_record("add", True, system="a", scores=undefined), make_record("add", False, system="b")]
    tables = report.summarise(records, ("add",))
    report.write_csv(tmp_path / "metrics.csv", tables)
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["system"], row["task"]) for row in rows] == [("a", "overall"), ("a", "add"), ("b", "overall"), ("b", "add")]
    counts = ["undefined_clip_dir_equal_captions"]
    assert list(rows[0]) == ["system", "task", "edit_success", "router", "refused", *METRICS, *counts]
    assert [row["edit_success"] for row in rows] == ["1.0", "1.0", "0.0", "0.0"]
    assert [row["clip_dir"] for row in rows] == ["", "", "0.5", "0.5"]


def test_success_in_slices_is_counted_apart(tmp_path: Path) -> None:
    def record(instruction: str, caption: str, success: bool, task: str = "add", system: str = "s") -> EvalRecord:
        texts = {"instruction": instruction, "source_caption": "a red circle", "target_caption": caption}
        return make_record(task, success, system=system, **texts)

    (tmp_path / "words.txt").write_text("heart\ndotted\nsea\n")
    records = [
        record("add a star", "a red circle and a star", True),
        record("add a ring", "a red circle and a ring", False),
        record("add a heart", "a red circle and a heart", False),
        record("put spots on it", "a dotted red circle", True),
        record("make it sea", "a red circle", False),
        record("make it blue", "a blue circle", True, task="remove"),
        record("add a star", "a red circle and a star", True, system="other"),
    ]
    slices = {"new": load_word_list(tmp_path / "words.txt")}
    tables = report.summarise(records, ("add", "remove"), slices)
    assert tables["edit_success_without_new"]["s"] == {"overall": 0.75, "add": 0.5, "remove": 1.0}
    assert tables["edit_success_new"] == {"s": {"overall": 0.3333, "add": 0.3333, "remove": None}}
    assert success_with_slices(tables) == {
        "s": {"overall": 0.7, "add": 0.4, "remove": 1.0, "new": 0.3333, "without_new": 0.75},
        "other": {"overall": 1.0, "add": 1.0, "remove": None, "new": None, "without_new": 1.0},
    }
    report.write_csv(tmp_path / "metrics.csv", tables)
    with (tmp_path / "metrics.csv").open() as stream:
        rows = {(row["system"], row["task"]): row["edit_success_new"] for row in csv.DictReader(stream)}
    assert rows["s", "add"] == "0.3333"
    assert rows["other", "add"] == ""


def test_the_success_table_is_text_with_a_column_for_each_system() -> None:
    table = {"identity": {"overall": 0.0, "add": 0.0}, "emuedit": {"overall": 0.456, "add": None, "remove": 1.0}}
    lines = format_success(table).splitlines()
    assert [line.split() for line in lines] == [
        ["edit", "success", "identity", "emuedit"],
        ["overall", "0.00", "0.46"],
        ["add", "0.00", "-"],
        ["remove", "-", "1.00"],
    ]
    assert len({len(line) for line in lines}) == 1, "the columns must be aligned"


def draw(records: Sequence[EvalRecord], tasks: tuple[str, ...], columns: int = 2) -> np.ndarray:
    success = report.summarise(records, tasks)["edit_success"]
    sheet = report.draw_contact_sheet(records, "s", tasks, columns, success)
    assert isinstance(sheet, Image.Image)
    return np.asarray(sheet)


def has_color(sheet: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((sheet == color).all(-1).any())


@pytest.mark.parametrize(("success", "frame", "other_frame"), [(True, GOOD_COLOR, BAD_COLOR), (False, BAD_COLOR, GOOD_COLOR)])
def test_the_frame_of_an_output_says_whether_it_succeeded(
    success: bool, frame: tuple[int, int, int], other_frame: tuple[int, int, int]
) -> None:
    sheet = draw([make_record("add", success)] * 2, ("add",))
    assert has_color(sheet, frame)
    assert not has_color(sheet, other_frame)


def test_the_sheet_shows_the_first_edits_of_every_task_and_system() -> None:
    hidden = encode_png(np.full((16, 16, 3), (201, 7, 8), np.uint8))
    records = [make_record("add", True), make_record("add", True), make_record("remove", False), make_record("remove", True)]
    others = [make_record("add", True, output=hidden), make_record("add", True, system="other", output=hidden)]
    sheet = draw(records + others, ("add", "remove"))
    assert sheet.shape[0] > 3 * 128
    assert has_color(sheet, (90, 90, 90))
    assert has_color(sheet, GOOD_COLOR)
    assert has_color(sheet, BAD_COLOR)
    assert not has_color(sheet, (201, 7, 8)), "the third edit of a task and other systems are not shown"


def test_exact_results_are_shown_where_all_are_known() -> None:
    all_known, one_unknown = [make_record("add", True)] * 2, [make_record("add", True), make_record("add", True, exact=None)]
    assert has_color(draw(all_known, ("add",)), (10, 20, 200))
    without = draw(one_unknown, ("add",))
    assert not has_color(without, (10, 20, 200))
    assert without.shape[0] < draw(all_known, ("add",)).shape[0]
