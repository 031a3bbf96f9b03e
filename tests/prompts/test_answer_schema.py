import json
from typing import Any

import pytest

from emuedit.prompts.answer_schema import AnswerError, ProposedEdit, Question, parse_answer
from emuedit.synthesis import masks


def parse(task: str, **values: Any) -> ProposedEdit:
    answer = {"instruction": "do it", "original_object": "", "edited_object": "", "output_caption": "a sofa"} | values
    return parse_answer(json.dumps(answer), Question(task, "a dog on a sofa"), 10)


@pytest.mark.parametrize("name", ["big dog " * 8, "dog" * 34])
def test_a_too_long_name_of_an_object_is_refused(name: str) -> None:
    """The detector's text encoder reads 256 tokens; the prompt asks for two or three words."""
    for task, objects in (
        ("remove", {"original_object": name}),
        ("local", {"original_object": "dog", "edited_object": name}),
        ("background", {"original_object": f"dog, {name}", "edited_object": "beach"}),
    ):
        with pytest.raises(AnswerError, match="want two or three words, at most 15 words and 100 characters") as error:
            parse(task, **objects)
        assert error.value.reason == "too_long"


def test_the_bounds_are_for_each_name_of_a_list() -> None:
    fifteen_words = " ".join(["dog"] * 15)
    assert parse("remove", original_object=fifteen_words).original_object == fifteen_words
    dogs = ", ".join(["brown dog"] * 12)
    assert len(masks.split_phrases(parse("background", original_object=dogs, edited_object="beach").original_object)) == 12
