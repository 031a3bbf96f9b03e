import json
from typing import Any

import pytest

from emuedit.prompts.answer_schema import AnswerError, ProposedEdit, Question, parse_answer
from emuedit.prompts.conversation import retry_conversation
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


def test_a_retry_quotes_neither_thoughts_nor_an_empty_answer() -> None:
    """Thoughts were paid for again, and endpoints refuse an empty message: the same question stopped every later run."""
    messages = [{"role": "system", "content": "rules"}, {"role": "user", "content": "question"}]
    error, question = AnswerError("no_json", "there is no JSON"), Question("remove", "a dog on a sofa")
    quoted = retry_conversation(messages, f"<think>{'why ' * 5000}</think> {{'a': 1}}", error, question)
    assert [message["role"] for message in quoted] == ["system", "user", "assistant", "user"]
    assert quoted[2]["content"] == "{'a': 1}"
    assert len(retry_conversation(messages, "x" * 9000, error, question)[2]["content"]) == 1500
    for answer in ("", " \n", "<think>nothing</think>"):
        *earlier, last = retry_conversation(messages, answer, error, question)
        assert earlier == messages[:1]
        assert last["role"] == "user"
        assert last["content"].startswith("question\n\nThat cannot be used: there is no JSON.")


def test_a_choice_in_another_case_is_that_choice() -> None:
    answer = {
        "instruction": "do it",
        "original_object": "",
        "edited_object": "More Contrast",
        "output_caption": "a dog on a sofa",
    }
    question = Question("color", "a dog on a sofa")
    assert parse_answer(json.dumps(answer), question, 10, ("brighten", "more contrast")).edited_object == "more contrast"
