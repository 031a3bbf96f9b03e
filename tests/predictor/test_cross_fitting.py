from pathlib import Path

import numpy as np
import pytest

from emuedit.data.records import Instruction
from emuedit.predictor.cross_fitting import (
    Example,
    fold_of,
    label_instructions,
    one_fold_tasks,
    read_out_of_fold,
    wording,
    write_out_of_fold,
)


def instruction(text: str, source: str, target: str, *objects: str) -> Instruction:
    return Instruction("c", "local", text, source, target, *objects, False, 0, "llm", "")


def test_instructions_that_differ_in_what_they_are_about_have_one_wording() -> None:
    star = instruction("Make the star blue!", "a red star on grass", "a blue star on grass", "red star", "blue star")
    ring = instruction("make the ring yellow", "a pink ring at night", "a yellow ring at night", "pink ring", "yellow ring")
    other = instruction("paint the star blue", "a red star on grass", "a blue star on grass", "red star", "blue star")
    assert wording(ring) == "make _"
    assert wording(star) == wording(ring)
    assert wording(other) != wording(star)
    assert fold_of(wording(star), 3) == fold_of(wording(ring), 3)


def test_a_wording_does_not_depend_on_the_function_words_of_the_caption() -> None:
    captions = ("a dog on a beach", "the dog runs on the beach", "a dog from the shelter", "a dog")
    assert {wording(instruction("Remove the dog from the room", text, "", "dog", "")) for text in captions} == {"remove _ room"}
    added = [wording(instruction(f"add {name}", "", name, "", name)) for name in ("a dog", "an apple")]
    assert added == ["add _", "add _"]


def test_a_task_with_one_fold_of_wordings_is_found() -> None:
    folds = {"local": (0, 1), "remove": (2, 2), "add": (1, 1, 0), "style": (0,)}
    examples = [Example(f"{task} {i}", task, fold) for task, used in folds.items() for i, fold in enumerate(used)]
    assert one_fold_tasks(examples) == ["remove", "style"]


def test_every_fold_gets_wordings() -> None:
    folds = [fold_of(f"wording {i}", 3) for i in range(300)]
    assert min(np.bincount(folds, minlength=3)) > 70


def test_predictions_out_of_fold_are_found_by_text(tmp_path: Path) -> None:
    p = np.array([[0.9, 0.1], [0.25, 0.75], [0.9, 0.1]])
    write_out_of_fold(tmp_path, ["a", "b", "a"], [0, 1, 0], ["local", "remove"], p)
    stored = read_out_of_fold(tmp_path, ["remove", "local"])
    assert set(stored) == {"a", "b"}
    np.testing.assert_allclose(stored["b"], [0.75, 0.25])
    assert read_out_of_fold(tmp_path / "other", ["local"]) == {}
    with pytest.raises(KeyError):
        read_out_of_fold(tmp_path, ["sketch"])


def test_equal_texts_are_in_one_fold_whatever_their_captions() -> None:
    rows = [
        Instruction(f"c{i}", "local", "make it red", f"a {word} star", f"a red {word}", None, None, False, i, "w", "")
        for i, word in enumerate(("make", "big", "small", "it", "blue", "red"))
    ]
    assert len({example.fold for example in label_instructions(rows, 5)}) == 1
