import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from emuedit.config import ParamsError
from emuedit.data.records import Instruction
from emuedit.prompts import conversation
from emuedit.prompts.answer_schema import ANSWER_KEYS, AnswerError, Question, answer_schema, parse_answer
from emuedit.prompts.diversity import diversity, normalize_text
from emuedit.synthesis import masks
from emuedit.tasks import TASKS

PROMPTS = Path(__file__).parents[2] / "emuedit" / "prompts"
COLOURS = "red|green|blue|yellow|orange|pink|purple|magenta|cyan|white|black|grey|brown"
QUESTION = Question("remove", "a dog on a sofa")
GOOD = {
    "instruction": "remove the dog", "original_object": "dog", "edited_object": "", "output_caption": "an empty sofa",
}  # fmt: skip


def error_reason(text: str, question: Question = QUESTION, max_words: int = 10, **options: Any) -> str:
    """The reason of the AnswerError that an unusable answer raises."""
    with pytest.raises(AnswerError) as error:
        parse_answer(text, question, max_words, **options)
    return error.value.reason


def test_an_answer_is_one_json_object() -> None:
    text = json.dumps(GOOD)
    edit = parse_answer(text, QUESTION, 10)
    assert (edit.instruction, edit.original_object, edit.edited_object) == ("remove the dog", "dog", None)
    assert parse_answer(f"Sure!\n```json\n{json.dumps(GOOD, indent=2)}\n```\nDone {{}}"[:-3], QUESTION, 10) == edit
    assert parse_answer(json.dumps(GOOD | {"why": 3}), QUESTION, 10) == edit
    other = json.dumps(GOOD | {"instruction": "erase the dog"})
    assert error_reason(f"{text}\n{other}") == "several"
    assert error_reason('{}\n{"edit": 1}') == "several"
    assert error_reason(text[:-9]) == "no_json"
    assert error_reason("I am sorry, but I cannot help with that.") == "refused"
    with pytest.raises(AnswerError, match="there is nothing to remove") as error:
        parse_answer("I cannot: there is nothing to remove.", QUESTION, 10)
    assert error.value.final


@pytest.mark.parametrize(
    "text",
    [
        f'<think>The input is {{"task": "remove"}}. Maybe {json.dumps(GOOD | {"instruction": "erase it"})}</think>\n',
        'The question was {"task": "remove", "caption": "a dog on a sofa"}. ',
        f"```json\n{json.dumps(GOOD, indent=1)}\n```\nOnce more: ",
        f"[THINK]Maybe {json.dumps(GOOD | {'instruction': 'erase it'})}[/THINK]",
        f"<seed:think>{json.dumps(GOOD | {'instruction': 'erase it'})} or</seed:think>",
    ],
)
def test_objects_in_thoughts_repeated_questions_and_repeated_answers_are_ignored(text: str) -> None:
    assert parse_answer(text + json.dumps(GOOD), QUESTION, 10) == parse_answer(json.dumps(GOOD), QUESTION, 10)


@pytest.mark.parametrize("before", ["", "<think>done</think>\n"])
@pytest.mark.parametrize("start", ["<think>", "[THINK]", "<seed:think>"])
def test_a_draft_in_thoughts_that_do_not_end_is_no_answer(before: str, start: str) -> None:
    assert error_reason(f"{before} {start}A draft: {json.dumps(GOOD)}. But is the dog") == "no_json"


def test_a_draft_in_a_cut_answer_may_be_a_thought_whose_start_is_in_the_chat_template() -> None:
    answer = json.dumps(GOOD)
    assert error_reason(f"Okay. A draft: {answer}. But is the dog", is_cut=True) == "no_json"
    edit = parse_answer(answer, QUESTION, 10)
    for before in ("", "\n ", "```json\n", "```\n", f"Draft: {{}}</think> I like {GOOD['instruction']!r}: ", "well[/THINK]"):
        assert parse_answer(f"{before}{answer} I hope", QUESTION, 10, is_cut=True) == edit
    assert parse_answer(f"Okay: {answer} I hope", QUESTION, 10) == edit, "an answer that was not cut has no unfinished thoughts"


def test_line_breaks_in_a_text_become_spaces() -> None:
    text = json.dumps(GOOD).replace("the dog", "the\ndog").replace("empty sofa", "empty\tsofa")
    assert parse_answer(text, QUESTION, 10) == parse_answer(json.dumps(GOOD), QUESTION, 10)


@pytest.mark.parametrize(
    ("instruction", "final"),
    [
        ("i cannot: no object", True),
        ("I cannot : no object", True),
        ("**I cannot:** no object", True),
        ("I cannot remove anything from this image", False),
        ("I can't do that", False),
        ("I cannot.", False),
        ("I can’t really make that change", False),
        ("I'm unable to see a dog", False),
        ("I’m sorry, there is nothing to remove.", False),
        ('"I am unable to see a dog"', False),
        ("I'm sorry, but I cannot help with that", False),
        ("I can't find a dog, as there is none", False),
        ("I'm sorry, but editing faces would violate rules", False),
        ("I can't do that, please choose another task", False),
    ],
)
def test_a_refusal_in_the_instruction_is_no_edit(instruction: str, final: bool) -> None:
    with pytest.raises(AnswerError) as error:
        parse_answer(json.dumps(GOOD | {"instruction": instruction}), QUESTION, 10)
    assert (error.value.reason, error.value.final) == ("refused", final)
    if final:
        with pytest.raises(AnswerError) as error:
            parse_answer(instruction, QUESTION, 10)
        assert error.value.final


def test_a_wish_and_an_apology_in_passing_are_no_refusals() -> None:
    for instruction in (
        "I want the dog gone",
        "sorry, but remove the dog",
        "icannot is a word: remove it",
        "I can't see the faces, brighten it",
        "I can’t make out the stars, more contrast please",
        "I cannot stand the dog: remove it",
        "I can't find the dog, please box it",
        "I'm unable to see anything, make it day",
    ):
        assert parse_answer(json.dumps(GOOD | {"instruction": instruction}), QUESTION, 10).instruction == instruction


def test_commas_separate_objects_only_in_the_background_task() -> None:
    objects = {"original_object": "small, brown dog", "edited_object": "big,black cat"}
    edit = parse_answer(json.dumps(GOOD | objects), Question("local", "a dog on a sofa"), 10)
    assert (edit.original_object, edit.edited_object) == ("small brown dog", "big black cat")
    assert masks.split_phrases(edit.original_object) == ("small brown dog",)
    background = {"original_object": "dog, cat", "edited_object": "beach"}
    edit = parse_answer(json.dumps(GOOD | background), Question("background", "a dog and a cat"), 10)
    assert masks.split_phrases(edit.original_object) == ("dog", "cat")
    assert error_reason(json.dumps(GOOD | {"original_object": " , "})) == "empty"


@pytest.mark.parametrize("direction", ["from_map", "to_map"])
def test_a_caption_is_not_counted_where_it_is_repeated_without_its_period(direction: Any) -> None:
    caption = " ".join(["word"] * 39) + " end."
    question = Question("depth", caption, direction)
    answer = {"original_object": "", "edited_object": "", "output_caption": f"a depth map of {caption}"}
    answer["instruction"] = f"make a photo from this: {caption[:-1]}, please"
    assert parse_answer(json.dumps(answer), question, 30).instruction == answer["instruction"]
    answer["instruction"] = "please " * 75
    assert error_reason(json.dumps(answer), question, 30) == "too_long"


def test_a_caption_may_be_repeated_in_other_words_only_where_it_describes_the_image() -> None:
    caption = "a woman, in a long dress, beside a clock"
    answer = {"original_object": "", "edited_object": "", "output_caption": f"a depth map of {caption}"}
    answer["instruction"] = f"a photo please: {caption.replace(',', '')}"
    parse_answer(json.dumps(answer), Question("depth", caption, "from_map"), 3)
    assert error_reason(json.dumps(answer), Question("depth", caption, "to_map"), 3) == "too_long"


def test_a_caption_of_sixty_long_words_fits_into_the_schema() -> None:
    """At 300 characters a constrained model was stopped in the middle of a word, and the rest of the caption was lost."""
    answer = {"instruction": "make it a depth map", "original_object": "", "edited_object": ""}
    schema = answer_schema("depth")
    long = " ".join(["photograph"] * 63)
    assert jsonschema.Draft202012Validator(schema).is_valid(answer | {"output_caption": f"a depth map of {long}"})
    from_map = {"instruction": f"make a photo of this depth map: {long}", "output_caption": f"a depth map of {long}"}
    assert jsonschema.Draft202012Validator(schema).is_valid(answer | from_map)
    style = jsonschema.Draft202012Validator(answer_schema("style"))
    assert style.is_valid(answer | {"output_caption": "a map"})
    assert not style.is_valid(answer | {"instruction": long, "output_caption": "a map"})


def test_the_schema_accepts_only_valid_answers_and_refusals() -> None:
    def is_valid(answer: Any, task: str = "remove", choices: tuple[str, ...] = ()) -> bool:
        return jsonschema.Draft202012Validator(answer_schema(task, choices)).is_valid(answer)

    assert is_valid(GOOD)
    assert not is_valid(GOOD | {"original_object": ""})
    assert not is_valid(GOOD | {"edited_object": "cat"})  # there is no object after a removal
    assert not is_valid(GOOD | {"why": "so"})
    assert not is_valid({key: GOOD[key] for key in ANSWER_KEYS[1:]})
    assert not is_valid(GOOD | {"instruction": "remove " * 50})
    assert is_valid(GOOD | {"original_object": "", "edited_object": "blur"}, "color", ("blur",))
    assert not is_valid(GOOD | {"original_object": "", "edited_object": "sing"}, "color", ("blur",))
    refusal = json.dumps(GOOD | {"instruction": "I cannot: there is no dog."})
    assert is_valid(json.loads(refusal))
    with pytest.raises(AnswerError, match="there is no dog") as error:
        parse_answer(refusal, QUESTION, 10)
    assert error.value.final


def test_an_answer_must_have_what_its_task_requires() -> None:
    for key in ANSWER_KEYS:
        assert error_reason(json.dumps({k: v for k, v in GOOD.items() if k != key})) == "lost_key"
    assert error_reason(json.dumps(GOOD | {"instruction": " "})) == "empty"
    assert error_reason(json.dumps(GOOD | {"original_object": None})) == "empty"
    assert error_reason(json.dumps(GOOD | {"original_object": ["dog", "cat"]})) == "no_text"
    assert error_reason(json.dumps(GOOD | {"instruction": "remove the dog \ud83d"})) == "not_unicode"
    assert error_reason(json.dumps(GOOD | {"instruction": "I cannot: \ud83d"})) == "not_unicode"
    assert error_reason(json.dumps(GOOD | {"output_caption": "A dog  on a sofa."})) == "unchanged"
    assert error_reason(json.dumps(GOOD | {"instruction": "please " * 11})) == "too_long"
    repeated = json.dumps(GOOD | {"instruction": "sketch to image: a dog on a sofa"})
    assert parse_answer(repeated, Question("sketch", "a dog on a sofa", "from_map"), 3).original_object is None
    unchanged = json.dumps(GOOD | {"output_caption": "a dog on a sofa", "edited_object": "darken"})
    assert parse_answer(unchanged, Question("color", "a dog on a sofa"), 10, ("darken",)).edited_object == "darken"
    assert error_reason(unchanged, Question("color", "a dog on a sofa"), choices=("blur",)) == "unknown_choice"


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_task_has_a_prompt_with_valid_exemplars(task: str) -> None:
    prompt = conversation.load_task_prompt(PROMPTS, task)
    assert len(prompt.exemplars) >= 5
    for exemplar in prompt.exemplars:
        jsonschema.validate({key: exemplar.answer[key] for key in ANSWER_KEYS}, answer_schema(task, prompt.choices))
    assert len(set(prompt.verbs)) >= 8
    assert task in prompt.description
    assert len({exemplar.caption for exemplar in prompt.exemplars}) == len(prompt.exemplars)


def test_every_choice_has_an_exemplar_and_hue_names_no_colour() -> None:
    prompt = conversation.load_task_prompt(PROMPTS, "color")
    assert {exemplar.answer["edited_object"] for exemplar in prompt.exemplars} == set(prompt.choices)
    hue = [exemplar.answer["instruction"] for exemplar in prompt.exemplars if exemplar.answer["edited_object"] == "hue"]
    assert not [text for text in hue if re.search(rf"\b({COLOURS}|warm\w*|cold\w*|tone|tint)\b", text)]


def test_no_question_for_a_colour_filter_asks_for_black_and_white() -> None:
    """desaturate leaves 15 % of the saturation, so that its result is no answer to such an instruction."""
    prompt = conversation.load_task_prompt(PROMPTS, "color")
    answers = [exemplar.answer for exemplar in prompt.exemplars if exemplar.answer["edited_object"] == "desaturate"]
    assert answers
    for answer in answers:
        assert not re.search(r"black and white|monochrome|gr[ae]y|no colou?r", json.dumps(answer))
    assert "do not ask for black and white" in prompt.description


def test_typing_errors_spare_the_letters_to_be_written() -> None:
    question = Question("text", "a coffee mug beside a laptop")
    messages = conversation.load_task_prompt(PROMPTS, "text").build_conversation(question, 0.6, "c1", "text")
    assert any("with a typing error" in manner for manner in conversation.MANNERS)
    assert "the error is never in the words that shall be read" in messages[0]["content"]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_boxes_and_masks_have_no_colour_and_nothing_is_cut_out(task: str) -> None:
    prompt = conversation.load_task_prompt(PROMPTS, task)
    for exemplar in prompt.exemplars:
        instruction = exemplar.answer["instruction"]
        colours = set(re.findall(rf"\b({COLOURS})\b", instruction))
        assert colours <= set(re.findall(COLOURS, exemplar.caption)), "a colour that is not that of an object"
        assert not re.search(rf"\b({COLOURS}) (bounding )?(box|frame|mask)|(box|frame|mask) in ({COLOURS})", instruction)
        assert not re.search(r"\bcut\b|\bisolate\b", instruction)
    assert not {"cut out", "isolate", "fill", "colour in", "paint over"} & set(prompt.verbs)


def test_the_conversation_samples_exemplars_verbs_and_manners_and_ends_in_the_question() -> None:
    prompt = conversation.load_task_prompt(PROMPTS, "remove")
    messages = prompt.build_conversation(QUESTION, 0.6, "c1", "remove")
    assert messages == prompt.build_conversation(QUESTION, 0.6, "c1", "remove")
    n_exemplars = round(0.6 * len(prompt.exemplars))
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * n_exemplars, "user"]
    assert json.loads(messages[-1]["content"].splitlines()[-1]) == {"task": "remove", "caption": "a dog on a sofa"}
    conversations = [prompt.build_conversation(QUESTION, 0.6, f"c{n}", "remove") for n in range(60)]
    assert len({messages[1]["content"] for messages in conversations}) == len(prompt.exemplars)
    assert len({tuple(sorted(m["content"] for m in messages[1:-1:2])) for messages in conversations}) > 8
    requests = [messages[-1]["content"] for messages in conversations]
    assert {verb for verb in prompt.verbs for request in requests if f"'{verb}'" in request} == set(prompt.verbs)
    assert {manner for manner in conversation.MANNERS for request in requests if f"Say it as {manner}." in request} == set(
        conversation.MANNERS
    )


def test_invalid_prompts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"remove.yaml"):
        conversation.load_task_prompt(tmp_path, "remove")
    text = (PROMPTS / "remove.yaml").read_text()
    (tmp_path / "remove.yaml").write_text(text.replace("original_object: tractor", 'original_object: ""'))
    with pytest.raises(conversation.TaskPromptError, match=r"exemplar 6 .* 'original_object' is empty"):
        conversation.load_task_prompt(tmp_path, "remove")
    sketch = (PROMPTS / "sketch.yaml").read_text()
    (tmp_path / "sketch.yaml").write_text(sketch.replace("      direction: to_map\n", "", 1))
    with pytest.raises(conversation.TaskPromptError, match=r"exemplar 1 .* want a direction"):
        conversation.load_task_prompt(tmp_path, "sketch")


def test_vowel_signs_distinguish_words_and_accents_may_be_composed() -> None:
    """Words of Indic scripts without their vowel signs were dropped as repeated."""
    assert normalize_text("काला कुत्ता!") == "काला कुत्ता"
    assert normalize_text("काला कुत्ता") != normalize_text("कोली कित्तो")
    assert normalize_text("remove the dog ❤\ufe0f") == normalize_text("remove the dog ❤") == "remove dog"
    assert normalize_text("add the number 1\ufe0f\u20e3") == normalize_text("add the number 1")
    assert normalize_text("add a cafe\u0301") == normalize_text("Add the Café") == "add café"


def test_diversity_ignores_case_punctuation_and_articles() -> None:
    assert normalize_text("Remove the Dog, please!") == normalize_text("remove a dog please") == "remove dog please"
    edits = [
        Instruction("c", "remove", text, "a", "b", "Dog", None, False, 0, "w", "")
        for text in ("remove the dog", "Remove a dog.", "erase the cat")
    ]
    metrics = diversity(edits)["remove"]
    assert metrics["distinct_texts"] == round(2 / 3, 4)
    assert (metrics["distinct_1"], metrics["distinct_2"]) == (round(4 / 6, 4), round(2 / 3, 4))
    assert metrics["verbs"] == {"remove": 2, "erase": 1}
    assert metrics["objects"] == {"dog": 3}
