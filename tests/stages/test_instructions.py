import json
import threading
from pathlib import Path

import pytest
import torch

from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Instruction
from emuedit.models.language_model import Message
from emuedit.prompts import conversation
from emuedit.prompts.answer_schema import answer_schema
from emuedit.stages import instructions
from emuedit.stages.instructions import InstructionsError, InstructionsParams, run
from emuedit.tasks import TASKS
from tests.stages.scripted_llm import ANSWER, ScriptedLLM, UseLLM, make_params, publish_captions, read_drops
from tests.stages.workspace import ROOT, toy_world

PROMPTS = ROOT / "emuedit" / "prompts"


def test_every_task_is_asked_once_for_every_caption(tmp_path: Path, use_llm: UseLLM) -> None:
    captions, llm = publish_captions(tmp_path), use_llm()
    summary = run(make_params(), tmp_path)
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction, verify=True))
    assert [(edit.caption_id, edit.task) for edit in edits] == [(c.id, t) for c in captions for t in ("remove", "add", "sketch")]
    assert len({seed for seed, _, _ in llm.sampling}) == len(llm.sampling) == 18
    assert {(temperature, top_p) for _, temperature, top_p in llm.sampling} == {(0.9, 0.9)}
    by_task = {task: [edit for edit in edits if edit.task == task] for task in ("remove", "add", "sketch")}
    text = {caption.id: caption.text for caption in captions}
    for edit in by_task["remove"]:
        assert (edit.reverse, edit.source_caption) == (False, text[edit.caption_id])
        assert (edit.source_object, edit.target_object) == ("dog", None)
    for edit in by_task["add"]:
        assert (edit.reverse, edit.source_caption) == (True, text[edit.caption_id])
        assert (edit.source_object, edit.target_object) == (None, "cat")
    for edit in by_task["sketch"]:
        assert (edit.source_object, edit.target_object) == (None, None)
        assert (edit.target_caption if edit.reverse else edit.source_caption) == text[edit.caption_id]
    directions = {question["caption"]: question["direction"] for question in llm.questions if question["task"] == "sketch"}
    assert set(directions.values()) == {"to_map", "from_map"}
    assert all((directions[text[edit.caption_id]] == "from_map") == edit.reverse for edit in by_task["sketch"])
    assert summary.counts == {"kept": 18, "dropped": 0, "kept_remove": 6, "kept_add": 6, "kept_sketch": 6}
    diversity = json.loads((tmp_path / instructions.OUT / "diversity.json").read_text())
    assert diversity["remove"]["instructions"] == 6
    assert diversity["all"]["objects"] == {"cat": 6, "dog": 6}


def test_decoding_is_constrained_to_the_answers_of_the_task(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "one dog")
    llm = use_llm(lambda question, messages, answer: json.dumps(json.loads(answer) | {"edited_object": "blur"}))
    run(make_params(tasks=("remove", "color")), tmp_path)
    remove_schema, color_schema = llm.schemas
    assert remove_schema == answer_schema("remove")
    assert color_schema is not None
    choices = conversation.load_task_prompt(PROMPTS, "color").choices
    assert color_schema["properties"]["edited_object"]["enum"] == list(choices)
    unconstrained = use_llm()
    run(make_params(tasks=("remove",), constrained_decoding=False), tmp_path)
    assert unconstrained.schemas == [None]


def test_an_unusable_answer_is_asked_again_and_then_dropped(tmp_path: Path, use_llm: UseLLM) -> None:
    captions = publish_captions(tmp_path, "one dog", "two dogs", "three dogs")

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str:
        if question["caption"] == "one dog":
            return answer if "cannot be used" in messages[-1]["content"] else "no idea"
        return "{}" if question["caption"] == "two dogs" else "I cannot: too many"

    llm = use_llm(reply)
    summary = run(make_params(tasks=("remove",), retries=2), tmp_path)
    assert [question["caption"] for question in llm.questions] == ["one dog"] * 2 + ["two dogs"] * 3 + ["three dogs"]
    second = llm.conversations[1]
    assert second[-2] == {"role": "assistant", "content": "no idea"}
    assert second[-1]["content"].startswith("That cannot be used: there is no complete JSON object in the answer. Answer again")
    assert [(drop.reason, drop.subject, drop.source, drop.index) for drop in read_drops(tmp_path)] == [
        ("lost_key", "{}", f"{captions[1].id}/remove", 1),
        ("refused", "I cannot: too many", f"{captions[2].id}/remove", 2),
    ]
    assert summary.counts["dropped_remove_refused"] == summary.counts["kept"] == 1


@pytest.mark.slow
def test_repeats_duplicates_full_tasks_and_unwanted_words_are_dropped(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "a dog", "the dog", "two dogs", "three dogs", "four dogs", "a gory dog")

    def reply(question: dict[str, str], messages: list[Message], answer: str) -> str:
        text = "Remove a dog!" if question["caption"] in ("a dog", "two dogs") else "remove the dog"
        output = "gore" if question["caption"] == "four dogs" else "nothing"
        return json.dumps(ANSWER | {"instruction": text, "output_caption": output})

    use_llm(reply)
    run(make_params(tasks=("remove",), max_repeat_share=0.34), tmp_path)
    assert [drop.reason for drop in read_drops(tmp_path)] == ["duplicate", "repeated", "moderated", "moderated"]
    llm = use_llm(reply)
    run(make_params(tasks=("remove",), max_repeat_share=1.0, max_per_task=1), tmp_path)
    assert [drop.reason for drop in read_drops(tmp_path)] == ["duplicate"]
    assert len(llm.questions) == 2, "a task that is full must not be asked for the other shards"


def test_the_share_of_repeats_is_that_of_the_captions_that_there_are(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, "one dog", "two dogs", "three dogs", "four dogs")
    use_llm(lambda *_: json.dumps(ANSWER))
    summary = run(make_params(tasks=("remove",), n_captions=1000, max_repeat_share=0.5), tmp_path)
    assert summary.counts == {"kept": 2, "dropped": 2, "kept_remove": 2, "dropped_repeated": 2, "dropped_remove_repeated": 2}


def test_the_share_of_repeats_is_that_of_the_instructions_that_a_task_keeps(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path, *(f"{number} dogs" for number in range(40)))
    use_llm(lambda *_: json.dumps(ANSWER))
    params = make_params(tasks=("remove",), n_captions=40, captions_per_shard=40, max_per_task=10, max_repeat_share=0.15)
    summary = run(params, tmp_path)
    assert summary.counts["kept"] == 2
    assert summary.counts["dropped_repeated"] == 38


def test_a_slow_answer_does_not_stop_the_questions_of_many_captions(tmp_path: Path, use_llm: UseLLM) -> None:
    """Requests wait for the slowest one at the end of a shard: with 40 captions in each, an endpoint was half idle."""
    publish_captions(tmp_path, *(f"{number} dogs" for number in range(60)))
    is_last_asked, waited = threading.Event(), list[bool]()

    def reply(question: dict[str, str], _: list[Message], answer: str) -> str:
        if question["caption"] == "0 dogs":
            waited.append(is_last_asked.wait(5))
        if question["caption"] == "59 dogs":
            is_last_asked.set()
        return answer

    use_llm(reply)
    n_captions = InstructionsParams.model_fields["captions_per_shard"].default
    run(make_params(tasks=("remove",), n_captions=60, captions_per_shard=n_captions, concurrency=2), tmp_path)
    assert waited == [True]


@pytest.mark.slow
def test_params_that_only_say_how_work_runs_do_not_change_the_result(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)
    use_llm()
    summary = run(make_params(), tmp_path)
    unrelated = {"concurrency": 3, "max_failed_share": 0.5, "endpoint": {"timeout_s": 300.0, "retries": 1, "max_tokens": None}}
    assert run(make_params(**unrelated), tmp_path) == summary
    assert run(make_params(endpoint={"send_seed": False}), tmp_path).key != summary.key
    assert run(make_params(temperature=None, top_p=None), tmp_path).key != summary.key


def test_sampling_params_may_be_left_to_the_llm(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)
    llm = use_llm()
    run(make_params(temperature=None, top_p=None), tmp_path)
    assert {(temperature, top_p) for _, temperature, top_p in llm.sampling} == {(None, None)}


def test_the_toy_llm_has_a_temperature_of_its_own(tmp_path: Path) -> None:
    publish_captions(tmp_path, "a big red star on the left on grass")
    assert run(make_params(tasks=("remove",), temperature=None, top_p=None), tmp_path).counts["kept"] == 1


def test_keeping_nothing_is_an_error_with_the_reasons(tmp_path: Path, use_llm: UseLLM) -> None:
    publish_captions(tmp_path)
    use_llm(lambda *_: "I cannot: I am tired")
    with pytest.raises(InstructionsError, match="'dropped_refused': 6"):
        run(make_params(tasks=("remove",)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "emuedit/agents"}, "want a file or folder .* got none at .*; it is now 'emuedit/prompts'"),
        ({"moderation": "words.txt"}, r"want a file or folder that params.yaml names, got none at .*words\.txt"),
    ],
)
def test_prompts_and_word_lists_that_do_not_exist_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InstructionsError, match=message):
        run(make_params(**changes), tmp_path)


@pytest.mark.slow
def test_the_toy_llm_answers_for_every_task(tmp_path: Path) -> None:
    objects = "a red card with the letter A on the left and a blue person waving on the right"
    publish_captions(
        tmp_path, f"{objects} on sand", f"{objects} and a big green ring at the top on a lawn", f"{objects} on snow at night"
    )
    names = tuple(task.name for task in TASKS)
    summary = run(make_params(tasks=names, concurrency=3), tmp_path)
    edits = list(read_folder(tmp_path / instructions.OUT, Instruction))
    assert {edit.task for edit in edits} == set(names)
    assert read_summary(tmp_path / instructions.OUT) == summary
    assert all(edit.source_object == "red card with the letter A" for edit in edits if edit.task == "text")
    kept_objects = [edit.source_object or "" for edit in edits if edit.task == "background"]
    assert kept_objects[0] == "red card with the letter A, blue person waving"


def test_a_chat_model_on_this_machine_has_the_device_and_number_format_of_the_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU before Ampere, a model of 7 billion parameters was loaded in float32, and no setting prevented it."""
    publish_captions(tmp_path)
    loaded: list[tuple[object, ...]] = []
    llm = ScriptedLLM(None)

    def load_llm(*arguments: object) -> ScriptedLLM:
        loaded.append(arguments)
        return llm

    monkeypatch.setattr(instructions, "load_llm", load_llm)
    world = toy_world() | {"llm": "owner/chat"}
    summary = run(make_params(world=world, device="cpu", dtype="float16"), tmp_path)
    assert loaded == [("owner/chat", "cpu", torch.float16)]
    assert summary.params["dtype"] == "float16"
    n_asked = len(llm.questions)
    assert run(make_params(world=world, device="cpu", dtype="float32"), tmp_path).params["dtype"] == "float32"
    assert len(llm.questions) == 2 * n_asked, "answers of another number format are not used"
