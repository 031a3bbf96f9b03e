import re
from pathlib import Path

import numpy as np
import pytest

from emuedit.data import data_card
from emuedit.data.data_card import CardExample
from emuedit.data.filters import Filters
from emuedit.data.png import encode_png
from emuedit.data.publish import Summary
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard


def picture(value: int) -> bytes:
    return encode_png(np.full((4, 6, 3), value, np.uint8))


def verdict(pair_id: str, *reasons: str, task: str = "local") -> Verdict:
    return Verdict(pair_id, not reasons, task, reasons, {}, {"dino": 0.5, "depth": None})


def test_kept_and_rejected_pairs_of_every_task_are_chosen_from_few_shards() -> None:
    n = 1200
    random = np.random.default_rng(0)
    tasks, shards = random.integers(0, 3, n), np.arange(n) // 100
    failed = random.random((3, n)) < np.array([[0.3], [0.02], [0.3]])
    rows = data_card.choose_examples(tasks, failed, shards, 5)
    np.testing.assert_array_equal(rows, np.unique(rows))
    rejected = failed.any(0)
    for task in range(3):
        task_rows = rows[tasks[rows] == task]
        assert (int((~rejected[task_rows]).sum()), int(rejected[task_rows].sum())) == (5, 5)
        assert len({tuple(failed[:, row]) for row in task_rows if rejected[row]}) >= 4  # different reasons first
    assert len(set(shards[rows])) <= 6
    np.testing.assert_array_equal(rows, data_card.choose_examples(tasks, failed, shards, 5))


def test_all_pairs_are_chosen_when_there_are_few() -> None:
    failed = np.array([[False, True, False]])
    assert data_card.choose_examples(np.zeros(3, int), failed, np.zeros(3, int), 5).tolist() == [0, 1, 2]


def test_examples_are_loaded_by_pair_id(tmp_path: Path) -> None:
    pairs = [
        Pair("i", ("i",), "local", f"do {k}", "a", "b", k, "m", {}, picture(k), picture(100 + k), None, {"dino": 0.1})
        for k in range(40)
    ]
    write_shard(tmp_path / "one.parquet", pairs[:20], Pair)
    write_shard(tmp_path / "two.parquet", pairs[20:], Pair)
    places = [(35, "two.parquet"), (3, "one.parquet"), (19, "one.parquet")]
    examples = data_card.load_examples([tmp_path / name for _, name in places], [verdict(pairs[k].id) for k, _ in places])
    loaded = {(example.verdict.pair_id, example.instruction, example.before, example.after) for example in examples}
    assert loaded == {(pairs[k].id, f"do {k}", pairs[k].source, pairs[k].target) for k, _ in places}


def test_one_sheet_per_task_with_green_and_red_frames() -> None:
    examples = [
        CardExample(verdict("a"), "make it red", picture(0), picture(9), None),
        CardExample(verdict("b", "dino_min"), "make it blue", picture(0), picture(9), None),
        CardExample(verdict("c", task="remove"), "remove it", picture(0), picture(9), encode_png(np.zeros((4, 6), np.uint8))),
    ]
    sheets = data_card.contact_sheets(examples)
    assert list(sheets) == ["sheet_local.png", "sheet_remove.png"]
    colours = {colour for _, colour in sheets["sheet_local.png"].getcolors(1 << 20)}
    assert {(38, 152, 84), (206, 56, 48)} <= colours  # green and red
    assert (206, 56, 48) not in {colour for _, colour in sheets["sheet_remove.png"].getcolors(1 << 20)}
    assert sheets["sheet_remove.png"].height > sheets["sheet_local.png"].height  # it has a row for the masks


@pytest.fixture
def card() -> str:
    summary = Summary("pairs", "f00d", {"world": {"name": "toy", "base_model": "p/q", "clip": "c"}, "steps": 8}, {}, {})
    counts = {
        "pairs": 8,
        "kept": 2,
        "kept_instructions": 2,
        "local.pairs": 8,
        "local.kept": 2,
        "dino_min": 6,
        "local.dino_min": 6,
    }
    filters: Filters = {"local": {"dino": {"min": 0.5, "max": 0.9}}}
    return data_card.render_card(counts, filters, ["rev1"], {"base_model": "MIT"}, summary, [])


def test_the_card_states_the_counts(card: str) -> None:
    for line in (
        "2 of 8 generated pairs are kept (25.0%), for 2 instructions of 1 tasks.", "| local | 8 | 2 | 25.0% | 0 |",
        "| dino_min | 6 | 6 |",
        "- local: `dino` >= 0.5, `dino` <= 0.9", "| base_model | `p/q` | MIT |", "| clip | `c` | not stated |",
        "dvc repro dataset",
    ):  # fmt: skip
        assert line in card.splitlines()
    assert "`rev1`" in card
    assert "f00d" in card


def test_the_card_lists_imported_pairs() -> None:
    generated = Summary("pairs", "f00d", {}, {}, {})
    imported = Summary("import", "beef", {"source": "org/set", "licence": "CC BY 4.0"}, {}, {})
    filters: Filters = {"default": {}, "local": {"dinov2_sim": {"min": 0.4}}}
    pairs = data_card.ImportedPairs("data/theirs", imported, filters, np.array([True, False, True]))
    counts = {"pairs": 5, "kept": 3, "kept_instructions": 3, "local.pairs": 5, "local.kept": 3}
    lines = data_card.render_card(counts, {"local": {}}, [], {}, generated, [pairs]).splitlines()
    assert "| `data/theirs` | `org/set` | CC BY 4.0 | 3 | 2 | default: none; local: `dinov2_sim` >= 0.4 |" in lines
    assert "3 of 5 generated and imported pairs are kept (60.0%), for 3 instructions of 1 tasks." in lines


def test_pairs_of_two_sizes_share_a_sheet() -> None:
    small = encode_png(np.zeros((4, 4, 3), np.uint8))
    examples = [
        CardExample(verdict("a"), "go", picture(0), picture(9), None),
        CardExample(verdict("b"), "go", small, small, None),
    ]
    sheet = np.asarray(data_card.contact_sheets(examples)["sheet_local.png"])
    assert (sheet == 0).all(-1).sum() >= 3 * 100 * 100  # three black pictures of the cells' size


def test_every_field_of_the_card_is_filled(card: str) -> None:
    assert not re.search(r"\{\w*\}", card)
