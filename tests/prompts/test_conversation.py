import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from emuedit.config import ParamsError
from emuedit.data.records import Instruction
from emuedit.prompts import conversation, moderation
from emuedit.prompts.answer_schema import KEYS, AnswerError, Question, read, schema
from emuedit.prompts.diversity import diversity, tidy
from emuedit.tasks import TASKS

AGENTS = Path(__file__).parents[2] / "emuedit" / "prompts"
ASKED = Question("remove", "a dog on a sofa")
GOOD = {
    "instruction": "remove the dog", "original_object": "dog", "edited_object": "", "output_caption": "an empty sofa",
}  # fmt: skip


def refused(text: str, asked: Question = ASKED, max_words: int = 10, **rest: Any) -> str:
    with pytest.raises(AnswerError) as error:
        read(text, asked, max_words, **rest)
    return error.value.reason


def test_an_answer_is_one_json_object() -> None:
    text = json.dumps(GOOD)
    edit = read(text, ASKED, 10)
    assert (edit.instruction, edit.original_object, edit.edited_object) == ("remove the dog", "dog", None)
    assert read(f"Sure!\n```json\n{json.dumps(GOOD, indent=2)}\n```\nDone {{}}"[:-3], ASKED, 10) == edit
    assert read(json.dumps(GOOD | {"why": 3}), ASKED, 10) == edit
    assert refused(f"{text}\n{text}") == "several"
    assert refused(text[:-9]) == "no_json"
    assert refused("I am sorry, but I cannot help with that.") == "refused"
    with pytest.raises(AnswerError, match="there is nothing to remove") as error:
        read("I cannot: there is nothing to remove.", ASKED, 10)
    assert error.value.final


def test_the_schema_takes_good_answers_and_refusals_and_nothing_else() -> None:
    def fits(answer: Any, task: str = "remove", choices: tuple[str, ...] = ()) -> bool:
        return jsonschema.Draft202012Validator(schema(task, choices)).is_valid(answer)

    assert fits(GOOD)
    assert not fits(GOOD | {"original_object": ""})
    assert not fits(GOOD | {"edited_object": "cat"})  # nothing is there afterwards
    assert not fits(GOOD | {"why": "so"})
    assert not fits({key: GOOD[key] for key in KEYS[1:]})
    assert not fits(GOOD | {"instruction": "remove " * 50})
    assert fits(GOOD | {"original_object": "", "edited_object": "blur"}, "color", ("blur",))
    assert not fits(GOOD | {"original_object": "", "edited_object": "sing"}, "color", ("blur",))
    no = json.dumps(GOOD | {"instruction": "I cannot: there is no dog."})
    assert fits(json.loads(no))
    with pytest.raises(AnswerError, match="there is no dog") as error:
        read(no, ASKED, 10)
    assert error.value.final


def test_an_answer_must_say_what_its_task_needs() -> None:
    for key in KEYS:
        assert refused(json.dumps({k: v for k, v in GOOD.items() if k != key})) == "lost_key"
    assert refused(json.dumps(GOOD | {"instruction": " "})) == "empty"
    assert refused(json.dumps(GOOD | {"original_object": None})) == "empty"
    assert refused(json.dumps(GOOD | {"original_object": ["dog", "cat"]})) == "no_text"
    assert refused(json.dumps(GOOD | {"output_caption": "A dog  on a sofa."})) == "unchanged"
    assert refused(json.dumps(GOOD | {"instruction": "please " * 11})) == "too_long"
    repeated = json.dumps(GOOD | {"instruction": "sketch to image: a dog on a sofa"})
    assert read(repeated, Question("sketch", "a dog on a sofa", "from_map"), 3).original_object is None
    dull = json.dumps(GOOD | {"output_caption": "a dog on a sofa", "edited_object": "darken"})
    assert read(dull, Question("color", "a dog on a sofa"), 10, ("darken",)).edited_object == "darken"
    assert refused(dull, Question("color", "a dog on a sofa"), choices=("blur",)) == "unknown_choice"


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_task_has_an_agent_whose_exemplars_are_good_answers(task: str) -> None:
    agent = conversation.load(AGENTS, task)
    assert len(agent.exemplars) >= 5
    for one in agent.exemplars:
        jsonschema.validate({key: one.answer[key] for key in KEYS}, schema(task, agent.choices))
    assert len(set(agent.verbs)) >= 8
    assert task in agent.description
    assert len({one.caption for one in agent.exemplars}) == len(agent.exemplars)


def test_the_conversation_samples_exemplars_and_verbs_and_ends_in_the_question() -> None:
    agent = conversation.load(AGENTS, "remove")
    told = agent.conversation(ASKED, 0.6, "c1", "remove")
    assert told == agent.conversation(ASKED, 0.6, "c1", "remove")
    assert [one["role"] for one in told] == ["system", *["user", "assistant"] * 4, "user"]
    assert json.loads(told[-1]["content"].splitlines()[-1]) == {"task": "remove", "caption": "a dog on a sofa"}
    many = [agent.conversation(ASKED, 0.6, f"c{n}", "remove") for n in range(60)]
    assert len({one[1]["content"] for one in many}) == len(agent.exemplars)
    assert len({tuple(sorted(m["content"] for m in one[1:-1:2])) for one in many}) > 8
    assert len({one[-1]["content"] for one in many}) == len(agent.verbs)


def test_a_wrong_agent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"remove.yaml"):
        conversation.load(tmp_path, "remove")
    text = (AGENTS / "remove.yaml").read_text()
    (tmp_path / "remove.yaml").write_text(text.replace("original_object: tractor", 'original_object: ""'))
    with pytest.raises(conversation.AgentError, match=r"exemplar 6 .* 'original_object' is empty"):
        conversation.load(tmp_path, "remove")
    sketch = (AGENTS / "sketch.yaml").read_text()
    (tmp_path / "sketch.yaml").write_text(sketch.replace("      direction: to_map\n", "", 1))
    with pytest.raises(conversation.AgentError, match=r"exemplar 1 .* want a direction"):
        conversation.load(tmp_path, "sketch")


def test_the_word_list_knows_whole_words(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("# a comment\n\ngore\ndead body\n")
    words = moderation.load(tmp_path / "w.txt")
    assert words.objection(["Al Gorey at sea", "a deadly body"]) is None
    assert words.objection(["fine", "GORE everywhere"]) == "gore"
    assert words.objection(["a dead  body"]) == "dead  body"
    (tmp_path / "w.txt").write_text("")
    assert moderation.load(tmp_path / "w.txt").objection(["gore"]) is None
    with pytest.raises(ValueError, match=r"set instructions\.moderation"):
        moderation.load(tmp_path / "absent.txt")


def test_texts_are_compared_without_case_points_and_articles() -> None:
    assert tidy("Remove the Dog, please!") == tidy("remove a dog please") == "remove dog please"
    some = [
        Instruction("c", "remove", text, "a", "b", "Dog", None, False, 0, "w", "")
        for text in ("remove the dog", "Remove a dog.", "erase the cat")
    ]
    figures = diversity(some)["remove"]
    assert figures["distinct_texts"] == round(2 / 3, 4)
    assert (figures["distinct_1"], figures["distinct_2"]) == (round(4 / 6, 4), round(2 / 3, 4))
    assert figures["verbs"] == {"remove": 2, "erase": 1}
    assert figures["objects"] == {"dog": 3}
