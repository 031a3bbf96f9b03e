"""Which captions get instructions, and what a further caption in the source changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emuedit.data.caption_choice import choose_captions
from emuedit.data.dependencies import work_key
from emuedit.data.publish import read_folder
from emuedit.data.records import Caption, Instruction
from emuedit.stages import captions, instructions
from tests.stages.scripted_llm import UseLLM, make_params
from tests.stages.test_captions import make_params as make_captions_params
from tests.stages.workspace import read_files

CATEGORIES = ("dog", "sofa", "car", "tree")
SORTED = [Caption(f"{category} number {n}", "c.txt", 100 * c + n) for c, category in enumerate(CATEGORIES) for n in range(100)]


def test_the_first_captions_of_a_sorted_file_are_of_one_category_and_random_ones_of_all() -> None:
    assert list(choose_captions(SORTED, 40, "first")) == SORTED[:40]
    chosen = list(choose_captions(SORTED, 40, "random"))
    assert len(chosen) == 40
    for category in CATEGORIES:
        assert 3 <= sum(caption.text.startswith(category) for caption in chosen) <= 20


def test_the_first_of_the_random_captions_are_from_everywhere() -> None:
    """Tasks may be full (`max_per_task`) before all captions are used."""
    chosen = list(choose_captions(SORTED, len(SORTED), "random"))
    assert sorted(chosen, key=lambda caption: caption.index) == SORTED
    assert {caption.text.split()[0] for caption in chosen[:40]} == set(CATEGORIES)


def test_all_captions_are_used_in_their_order_if_there_are_not_more() -> None:
    assert list(choose_captions(SORTED[:40], 50, "first")) == SORTED[:40]


def test_a_further_caption_replaces_at_most_one_random_caption() -> None:
    before = list(choose_captions(SORTED[1:], 40, "random"))
    after = list(choose_captions(SORTED, 40, "random"))
    assert len(set(before) - set(after)) <= 1
    assert set(after) - set(before) <= {SORTED[0]}


@pytest.mark.slow
def test_the_stage_asks_for_the_captions_of_its_choice(tmp_path: Path, use_llm: UseLLM) -> None:
    texts = [caption.text for caption in SORTED]
    run_captions(tmp_path, texts)
    llm = use_llm()
    instructions.run(make_params(tasks=("remove",), n_captions=8, choice="random"), tmp_path)
    expected = choose_captions(read_folder(tmp_path / captions.OUT, Caption), 8, "random")
    assert [question["caption"] for question in llm.questions] == [caption.text for caption in expected]
    assert {question["caption"] for question in llm.questions} != set(texts[:8])


@pytest.mark.slow
def test_the_progress_starts_before_the_captions_are_chosen(
    tmp_path: Path, use_llm: UseLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random choice reads all captions."""
    run_captions(tmp_path, [caption.text for caption in SORTED[:8]])
    use_llm()
    capsys.readouterr()
    earlier: list[str] = []

    def record(*arguments: Any) -> Iterator[Caption]:
        earlier.append(capsys.readouterr().err)
        return choose_captions(*arguments)

    monkeypatch.setattr(instructions, "choose_captions", record)
    instructions.run(make_params(tasks=("remove",), n_captions=4, choice="random"), tmp_path)
    assert "instructions: 0/4 questions, 0%" in earlier[0]


def run_captions(root: Path, texts: list[str]) -> None:
    (root / "c.txt").write_text("\n".join(texts))
    captions.run(make_captions_params("c.txt", n_rows=1000, rows_per_shard=100), root)


@pytest.mark.slow
def test_a_caption_that_is_not_used_leaves_the_pairs_as_they_are(tmp_path: Path, use_llm: UseLLM) -> None:
    """Neither DVC nor the key of the pairs' scratch folder sees a change."""
    use_llm()
    texts = [caption.text for caption in SORTED[:8]]
    run_captions(tmp_path, texts)
    instructions.run(make_params(), tmp_path)
    before, key = read_files(tmp_path / instructions.OUT), work_key("pairs", {}, tmp_path)
    source = read_files(tmp_path / captions.OUT)
    run_captions(tmp_path, [*texts, "a caption beyond the first six"])
    assert read_files(tmp_path / captions.OUT) != source
    instructions.run(make_params(), tmp_path)
    assert read_files(tmp_path / instructions.OUT) == before
    assert work_key("pairs", {}, tmp_path) == key
    run_captions(tmp_path, ["another first caption", *texts])
    instructions.run(make_params(), tmp_path)
    assert len(list(read_folder(tmp_path / instructions.OUT, Instruction))) == 18
    assert work_key("pairs", {}, tmp_path) != key
